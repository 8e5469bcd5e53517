"""The developers' commands."""
