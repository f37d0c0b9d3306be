"""The language model in 8 or 4 bits through bitsandbytes; the rest of the model stays as it is.

The settings are QLoRA's (arXiv:2305.14314) and LLM.int8()'s (arXiv:2208.07339), the same for training on rounded
weights and for the checkpoints that `qwen-vqa quantize` writes.
"""

from importlib.util import find_spec
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from qwen_vqa.plugin.command.installed_command import how_to_install
from qwen_vqa.plugin.errors import UserError

NF4: dict[str, Any] = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_quant_storage": "uint8",
}
INT8: dict[str, Any] = {"load_in_8bit": True, "load_in_4bit": False, "llm_int8_threshold": 6.0}
# The encoder and the connector are small, and errors there reach every token; the output layer is tied in Qwen2.5-3B.
KEPT_WHOLE = ["vision_encoder", "connector", "lm_head"]


def bitsandbytes_config(load_in: str, compute_dtype: torch.dtype | None = None) -> BitsAndBytesConfig | None:
    """What `from_pretrained` takes for "8bit" and "4bit"; None for "full".

    Args:
        compute_dtype: what 4-bit weights are turned back into when they are multiplied (default: NF4's bfloat16).

    Raises:
        UserError: bitsandbytes is not installed.
    """
    if load_in == "full":
        return None
    if find_spec("bitsandbytes") is None:
        raise UserError(f"--load-in {load_in} needs bitsandbytes: {how_to_install('qlora')}")
    settings = {"8bit": INT8, "4bit": NF4}[load_in]
    if compute_dtype is not None:
        settings = settings | {"bnb_4bit_compute_dtype": compute_dtype}
    return BitsAndBytesConfig(**settings, llm_int8_skip_modules=KEPT_WHOLE)
