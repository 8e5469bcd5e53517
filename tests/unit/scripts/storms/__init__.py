"""`scripts/storm`, piece by piece."""
