"""Train: the PyTorch reference model, the training loop, checkpoint assembly and the serving proof.

`from qwen_vqa.train import QwenVqaForConditionalGeneration` makes `AutoModelForImageTextToText` know the model. PyTorch
and Transformers are imported only then: a command line is read, and answered with help or an error, without them.
"""

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwen_vqa.train.model.reference_model import QwenVqaForConditionalGeneration

# peft imports bitsandbytes where it is installed, and that asks every CPU user for a package nobody needs here.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__all__ = ["QwenVqaForConditionalGeneration"]


def __getattr__(name: str) -> type:
    if name != "QwenVqaForConditionalGeneration":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from qwen_vqa.train.model.reference_model import QwenVqaForConditionalGeneration

    return QwenVqaForConditionalGeneration
