"""The bitsandbytes settings of nf4 and int8-bnb, in the one place that quantizing and QLoRA training should share."""

from typing import Any

BLOCK_SIZE = 64
NF4: dict[str, Any] = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_quant_storage": "uint8",
}
INT8: dict[str, Any] = {"load_in_8bit": True, "load_in_4bit": False, "llm_int8_threshold": 6.0}
