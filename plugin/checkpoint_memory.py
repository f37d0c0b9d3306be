"""What a checkpoint takes of memory, by its config and the headers of its files: no weight is read."""

import json
import math
from collections import Counter
from pathlib import Path

from safetensors import safe_open

from qwen_vqa.plugin.config import VISION_WEIGHTS, QwenVqaConfig

GIB = 2**30
DTYPE_BYTES = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2, "auto": 2}
# Bytes of a number in a safetensors file. Those that are not here are served as they are stored, in a byte or less.
_FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_INTEGER_BYTES = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2}
_FLOAT_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def weight_bytes(folder: Path, dtype: str) -> int:
    """What the checkpoint's weights take when floats are held in `dtype`; "auto": as they are stored.

    The vision side stays in float32 where config.json says so.
    """
    total = 0
    config = folder / "config.json"
    in_float32 = VISION_WEIGHTS if config.is_file() and json.loads(config.read_text()).get("vision_in_float32") else ()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                part = tensors.get_slice(name)
                stored = part.get_dtype()
                size = _FLOAT_BYTES.get(stored) or _INTEGER_BYTES.get(stored, 1)
                if stored in _FLOAT_BYTES and dtype != "auto":
                    size = DTYPE_BYTES["float32" if name.startswith(in_float32) else dtype]
                total += size * math.prod(part.get_shape())
    return total


def kv_bytes_per_token(config: QwenVqaConfig, dtype: str) -> int:
    """Keys and values of all layers, for one token."""
    text = config.text_config
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * head_size * DTYPE_BYTES[dtype]


def checkpoint_dtype(folder: Path) -> str:
    """The checkpoint's float type: what config.json names, or else the language model's weights have."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    named = config.get("dtype") or config.get("torch_dtype")
    return str(named).removeprefix("torch.") if named else _stored_float_type(folder)


def _stored_float_type(folder: Path) -> str:
    """The float type that most of the language model's numbers are stored in."""
    counts: Counter[str] = Counter()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                part = tensors.get_slice(name)
                if name.startswith("language_model.") and part.get_dtype() in _FLOAT_TYPES:
                    counts[_FLOAT_TYPES[part.get_dtype()]] += math.prod(part.get_shape())
    return counts.most_common(1)[0][0] if counts else "bfloat16"
