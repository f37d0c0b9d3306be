"""What `serve` chooses on a CPU: threads, memory, float type, layers, compile cache."""
