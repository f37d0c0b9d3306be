"""Vision encoders, a file a family: what the rest asks of it, its module, and its weights' other names."""
