"""The reference model in plain PyTorch: its parts, and its checkpoint folder."""
