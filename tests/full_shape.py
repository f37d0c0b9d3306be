"""Serving equals training at full size: ViT-B/32-384 and Qwen2.5-3B's shape, random weights, bfloat16.

Outside the suite: it takes minutes, 7 GB of disk and about 18 GB of memory.

    python -m tests.full_shape                # all 36 layers
    python -m tests.full_shape --layers 12    # with less memory
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen2Config, ViTConfig
from transformers.initialization import no_init_weights

from qwen_vqa.plugin.chat_template import chat_template
from qwen_vqa.plugin.config import QwenVqaConfig
from qwen_vqa.plugin.image_processor import QwenVqaImageProcessor
from qwen_vqa.plugin.processor import QwenVqaProcessor
from qwen_vqa.serving.cli import main as qwen_vqa
from qwen_vqa.train.checkpoint import save_checkpoint
from qwen_vqa.train.model import QwenVqaForConditionalGeneration
from tests.tiny import DEMO

# Qwen2.5-Instruct's config.json files: what differs between them.
SHAPES = {
    "3B": {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16},
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
}


def full_config(layers: int, processor: QwenVqaProcessor, shape: str = "3B") -> QwenVqaConfig:
    """google/vit-base-patch32-384's config.json and a Qwen2.5-Instruct's, but for the number of layers."""
    return QwenVqaConfig(
        ViTConfig(image_size=384, patch_size=32),
        Qwen2Config(
            **SHAPES[shape] | {"num_hidden_layers": layers},
            vocab_size=151936,
            num_key_value_heads=2,
            max_position_embeddings=32768,
            rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
            rms_norm_eps=1e-6,
            tie_word_embeddings=True,
            max_window_layers=layers,
            eos_token_id=processor.tokenizer.convert_tokens_to_ids("<|im_end|>"),
        ),
        image_token_id=processor.image_token_id,
    )


def random_model(config: QwenVqaConfig, seed: int) -> QwenVqaForConditionalGeneration:
    """Random bfloat16 weights; embeddings wide enough that the likeliest token stands out, as in a trained model."""
    torch.set_default_dtype(torch.bfloat16)
    with no_init_weights():
        model = QwenVqaForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(0 if name.endswith("bias") else 1)
            else:
                parameter.normal_(0, 0.06 if "embed" in name else 0.02, generator=generator)
    return model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=36, help="of the language model (default: all %(default)s)")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the comparison there")
    args = parser.parse_args()
    processor = QwenVqaProcessor(QwenVqaImageProcessor(384, 32), AutoTokenizer.from_pretrained(DEMO), chat_template())
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        print(f"drawing random weights: {args.layers} of 36 layers, seed {args.seed}", flush=True)
        save_checkpoint(folder, random_model(full_config(args.layers, processor), args.seed), processor)
        more = ["--json", str(args.json)] if args.json else []
        status = qwen_vqa(["verify", folder, "--dtype", args.dtype, *more])
    print(f"{time.monotonic() - started:.0f} s")
    return status


if __name__ == "__main__":
    sys.exit(main())
