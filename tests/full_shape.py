"""Serving equals training at full size: ViT-B/32-384 and Qwen2.5-3B's shape, random weights, bfloat16.

Outside the suite: it takes minutes, 7 GB of disk and about 18 GB of memory.

    python -m tests.full_shape                # all 36 layers
    python -m tests.full_shape --layers 12    # with less memory
"""

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from transformers import AutoTokenizer

from qwen_vqa.benchmarks.machine.model_shapes import SHAPES, random_model, shape_config
from qwen_vqa.plugin.chat.chat_template import chat_template
from qwen_vqa.plugin.processor import QwenVqaProcessor
from qwen_vqa.plugin.views.image_processor import QwenVqaImageProcessor
from qwen_vqa.serving.cli import main as qwen_vqa
from qwen_vqa.train.model.reference_checkpoint import save_checkpoint
from tests.tiny import DEMO


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=36, help="of the language model (default: all %(default)s)")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the comparison there")
    args = parser.parse_args()
    processor = QwenVqaProcessor(QwenVqaImageProcessor(384, 32), AutoTokenizer.from_pretrained(DEMO), chat_template())
    config = shape_config(replace(SHAPES["3b"], layers=args.layers), processor)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        print(f"drawing random weights: {args.layers} of 36 layers, seed {args.seed}", flush=True)
        save_checkpoint(folder, random_model(config, args.seed), processor)
        more = ["--json", str(args.json)] if args.json else []
        status = qwen_vqa(["verify", folder, "--dtype", args.dtype, *more])
    print(f"{time.monotonic() - started:.0f} s")
    return status


if __name__ == "__main__":
    sys.exit(main())
