"""Train: the PyTorch reference model, the training loop, checkpoint assembly and the serving proof."""
