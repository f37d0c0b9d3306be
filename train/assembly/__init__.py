"""Training artefacts to a checkpoint folder that `qwen-vqa serve` takes."""
