"""Train: the PyTorch reference model, the training loop, checkpoint assembly and the serving proof.

Importing this package makes `AutoModelForImageTextToText` know the model.
"""

import logging

from qwen_vqa.train.model.reference_model import QwenVqaForConditionalGeneration, register_model

# peft imports bitsandbytes where it is installed, and that asks every CPU user for a package nobody needs here.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

register_model()

__all__ = ["QwenVqaForConditionalGeneration"]
