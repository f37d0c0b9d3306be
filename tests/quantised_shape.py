"""Speed, memory and disk of the schemes at full size: Qwen2.5's shape, random weights, bfloat16, against 16 bits.

Outside the suite: it takes minutes a scheme; 3B needs 12 GB of disk and about 20 GB of memory. Int4 is rounded to
nearest here: calibrating random weights would change neither size nor speed.

    python -m tests.quantised_shape --shape 3B -o runs/3b                  # on a machine with nothing else to do
    python -m tests.quantised_shape --shape 0.5B --schemes int8 -o runs/half-b
"""

import argparse
import sys
from pathlib import Path

from transformers import AutoTokenizer

from qwen_vqa.plugin.chat_template import chat_template
from qwen_vqa.plugin.image_processor import QwenVqaImageProcessor
from qwen_vqa.plugin.processor import QwenVqaProcessor
from qwen_vqa.quantize.checkpoint import write_quantised
from qwen_vqa.quantize.options import Options, check
from qwen_vqa.serving.cli import main as qwen_vqa
from qwen_vqa.train.checkpoint import save_checkpoint
from tests.full_shape import SHAPES, full_config, random_model
from tests.tiny import DEMO


def make_original(folder: Path, shape: str, seed: int) -> Path:
    """A checkpoint of this shape; one that is there already is taken."""
    if not (folder / "config.json").is_file():
        processor = QwenVqaProcessor(
            QwenVqaImageProcessor(384, 32), AutoTokenizer.from_pretrained(DEMO), chat_template()
        )
        config = full_config(SHAPES[shape]["num_hidden_layers"], processor, shape)
        print(f"drawing random weights in {shape}'s shape, seed {seed}", flush=True)
        save_checkpoint(folder, random_model(config, seed), processor)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="3B", help="(default: %(default)s)")
    parser.add_argument("--schemes", nargs="+", default=["int8", "int4", "nf4"], help="(default: int8 int4 nf4)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default: %(default)s)")
    parser.add_argument(
        "--threads-bind", action="append", metavar="BIND", help="passed on to the report (default: 0 and 0-1)"
    )
    parser.add_argument("--tokens", type=int, default=64, help="of each timed answer (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each server (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="for checkpoints and reports")
    args = parser.parse_args()
    original = make_original(args.output / "original", args.shape, args.seed)
    binds = [word for bind in args.threads_bind or ["0", "0-1"] for word in ("--threads-bind", bind)]
    for name in args.schemes:
        quantised = args.output / name
        if not quantised.exists():
            options = Options(original, quantised, name)
            scheme, selection = check(options)
            write_quantised(
                original, quantised, scheme, selection, lambda _, w, s=scheme: s.quantise(w), options.record()
            )
        timing = ["--tokens", str(args.tokens), "--rounds", str(args.rounds)]
        qwen_vqa(["quantize", "report", str(original), str(quantised), *timing, *binds])
    return 0


if __name__ == "__main__":
    sys.exit(main())
