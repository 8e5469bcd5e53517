"""The real-time gateway: sockets, protocol, fan-out and the publication log."""
