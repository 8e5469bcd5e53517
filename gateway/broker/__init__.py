"""What crosses processes: the Broker contract and its implementations."""
