"""`scripts/storm`: a server that dies, or is deployed, under thousands of clients."""
