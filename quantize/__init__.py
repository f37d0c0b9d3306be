"""Quantize: 8- and 4-bit checkpoints that `qwen-vqa serve` loads by itself, and a report of what they cost."""
