"""What each part of a served model is held and multiplied in: quantising leaves some of them as they were."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PartFormat:
    """`layer_bytes` are of a weight in the language model's layers, with the scales that belong to it, `layer_type` is
    what those are multiplied in; `around_` the same of encoder, connector and output layer."""

    layer_bytes: float
    layer_type: str
    around_bytes: float
    around_type: str


# An int4 weight has its share of a 16-bit scale for 128 (a group of 64, as the demo's, reads 3% more). Of nf4, 64
# weights share a scale in 8 bits and 256 of those one in 32. Both are multiplied in what is around them, after being
# made that. int8's scales, one a row, are below 0.5%. What this server multiplies in float32 (-f32) it can read in the
# 16 bits that it was stored in; where it holds float32 alone, as a 3B for lack of memory, its share is of that, too.
# llama.cpp's q8_0 has a 16-bit scale for 32 weights, in the output layer, too; it has no encoder here.
SCHEMES = {
    "float32": PartFormat(4, "float32", 4, "float32"),
    "bfloat16": PartFormat(2, "bfloat16", 2, "bfloat16"),
    "int8": PartFormat(1, "int8", 2, "bfloat16"),
    "16-bit-f32": PartFormat(2, "float32", 2, "float32"),
    "int8-f32": PartFormat(1, "int8", 2, "float32"),
    "int4": PartFormat(1 / 2 + 2 / 128, "bfloat16", 2, "bfloat16"),
    "nf4": PartFormat(1 / 2 + 1 / 64 + 4 / (64 * 256), "bfloat16", 2, "bfloat16"),
    "q8_0": PartFormat(1 + 2 / 32, "int8", 1 + 2 / 32, "int8"),
}


def scheme_of(result: dict[str, Any]) -> str:
    """Of a candidate's file: what this server reads in 16 bits is what its command says."""
    scheme: str = result["scheme"]
    if "float32" not in result["command"]:
        return scheme
    ours = "qwen_vqa.serving.cli" in result["command"]
    return {"int8": "int8-f32", "float32": "16-bit-f32" if ours else scheme}.get(scheme, scheme)
