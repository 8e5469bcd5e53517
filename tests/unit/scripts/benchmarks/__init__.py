"""The parts of the benchmark that need no server."""
