"""Developer commands: thin shell entries and the Python behind them."""
