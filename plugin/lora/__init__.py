"""A LoRA adapter's folder, checked before anything loads: its names, its shapes, its config."""
