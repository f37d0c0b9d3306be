"""The language model of a checkpoint as a GGUF file for llama.cpp, without the vision encoder.

PYTHON -m qwen_vqa.benchmarks.alternatives.gguf_checkpoint runs/shapes/0.5b half.gguf --type q8_0

Needs the package gguf: PYTHON is what `alternatives.environments llama` prints. Matrices get the type that is asked
for; biases and norms stay in float32, as llama.cpp's own converter has them. The embedding is tied.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from qwen_vqa.benchmarks.script import run

PREFIX = "language_model.model."
# GGUF's names of Qwen2's tensors in a block.
IN_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
WHOLE = {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}
TYPES = ("f16", "q8_0")


def gguf_name(name: str) -> str | None:
    """GGUF's name of one of our tensors; None for what is not the language model's.

    Raises:
        KeyError: a tensor of the language model that Qwen2 does not have.
    """
    if not name.startswith(PREFIX):
        return None
    name = name[len(PREFIX) :]
    if name in WHOLE:
        return WHOLE[name]
    _, number, rest = name.split(".", 2)
    part, _, kind = rest.rpartition(".")
    return f"blk.{number}.{IN_BLOCK[part]}.{kind}"


def write_gguf(checkpoint: Path, file: Path, type_name: str) -> None:
    """Write the file; it appears when it is whole."""
    import gguf

    quantisation = {"f16": gguf.GGMLQuantizationType.F16, "q8_0": gguf.GGMLQuantizationType.Q8_0}[type_name]
    text = json.loads((checkpoint / "config.json").read_text())["text_config"]
    unfinished = file.with_suffix(".unfinished")
    writer = gguf.GGUFWriter(unfinished, "qwen2")
    _write_shape(writer, text)
    _write_tokenizer(writer, checkpoint, text, gguf.TokenType)
    with safe_open(checkpoint / "model.safetensors", "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (it is no dictionary)
            if (new := gguf_name(name)) is not None:
                tensor = tensors.get_tensor(name).to(torch.float32).numpy()
                kind = quantisation if tensor.ndim == 2 else gguf.GGMLQuantizationType.F32
                writer.add_tensor(new, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(file)


def _write_shape(writer: Any, text: dict[str, Any]) -> None:
    writer.add_context_length(text["max_position_embeddings"])
    writer.add_embedding_length(text["hidden_size"])
    writer.add_block_count(text["num_hidden_layers"])
    writer.add_feed_forward_length(text["intermediate_size"])
    writer.add_head_count(text["num_attention_heads"])
    writer.add_head_count_kv(text["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(text["rms_norm_eps"])
    writer.add_rope_freq_base(text["rope_parameters"]["rope_theta"])


def _write_tokenizer(writer: Any, checkpoint: Path, text: dict[str, Any], types: Any) -> None:
    """Qwen's byte-level BPE; numbers above the tokenizer's, which the shape has rows for, are unused tokens."""
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    size = text["vocab_size"]
    tokens = [f"[PAD{number}]" for number in range(size)]
    kinds = np.full(size, int(types.UNUSED), dtype=np.int32)
    for token, number in tokenizer["model"]["vocab"].items():
        tokens[number], kinds[number] = token, types.NORMAL
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = types.CONTROL if added["special"] else types.USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds.tolist())
    writer.add_token_merges(merges)
    writer.add_eos_token_id(text["eos_token_id"])
    writer.add_chat_template((checkpoint / "chat_template.jinja").read_text())


def main() -> None:
    """Write one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--type", choices=TYPES, default="f16", help="of the matrices (default: %(default)s)")
    args = parser.parse_args()
    write_gguf(args.checkpoint, args.file, args.type)
    print(args.file)


if __name__ == "__main__":
    run("gguf_checkpoint", main)
