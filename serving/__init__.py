"""Serving: the OpenAI-compatible server on vLLM's own app, the command line, and the bundled demo model."""

from pathlib import Path

DEMO_CHECKPOINT = Path(__file__).parent / "demo_checkpoint"
DEMO_IMAGES = Path(__file__).parent / "demo_images"
DEMO_NAME = "qwen-vqa-demo"
