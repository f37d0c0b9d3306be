"""HTTP/1.1 with bounds, under vLLM's app."""
