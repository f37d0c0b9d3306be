"""What quantising costs: the report of `qwen-vqa quantize report`, and studies of it."""
