"""The model as vLLM serves it."""
