"""The protocol core: pure state machines. No asyncio, no clock, no I/O; time is an argument."""
