"""What is to be seen of a run while it trains."""
