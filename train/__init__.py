"""Train: the PyTorch reference model, the training loop, checkpoint assembly and the serving proof.

Importing this package makes `AutoModelForImageTextToText` know the model.
"""

from qwen_vqa.train.model import QwenVqaForConditionalGeneration, register_model

register_model()

__all__ = ["QwenVqaForConditionalGeneration"]
