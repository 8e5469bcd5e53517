"""Measures what the gateway costs, against a baseline run beside it (docs/benchmarks.md)."""
