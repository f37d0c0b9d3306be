"""How much GPU memory training takes: the arithmetic, and a check of it by measuring."""
