"""How much GPU memory training takes, by arithmetic; --check holds the arithmetic to measurements of a scaled model.

    python -m qwen_vqa.train.memory      # Qwen2.5-3B behind ViT-B/32-384, the recipe's numbers
    python -m qwen_vqa.train.memory --base base --length 1024 --no-gradient-checkpointing

--spare is kept free for what is not counted: see memory_estimate.py.
"""

import argparse
from pathlib import Path

from transformers import AutoConfig

from qwen_vqa.plugin.registration import register_for_transformers
from qwen_vqa.train.memory.memory_check import check
from qwen_vqa.train.memory.memory_estimate import full_model, table
from qwen_vqa.train.training_config import TrainingConfig


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--base", type=Path, metavar="DIR", help="checkpoint folder (default: Qwen2.5-3B behind ViT-B/32-384)")
    add("--length", type=int, nargs="+", default=[512, 2048], help="tokens a sample, padded (default: 512 2048)")
    add("--labelled", type=int, default=256, help="of them in answers (default: %(default)s)")
    add("--batch-size", type=int, default=4, help="(default: %(default)s)")
    add("--rank", type=int, default=64, help="0: the connector alone (default: %(default)s)")
    add("--target-modules", nargs="+", default=["attention"], metavar="NAME", help="(default: attention)")
    add("--gradient-checkpointing", action=argparse.BooleanOptionalAction, default=True, help="(default: on)")
    add("--card", type=float, default=12, metavar="GIB", help="the card's memory (default: %(default)s)")
    add("--spare", type=float, default=1, metavar="GIB", help="of it kept free (default: %(default)s)")
    add("--check", action="store_true", help="measure a scaled model on the CPU instead (a minute)")
    options = parser.parse_args(argv)
    if options.check:
        print(check())
        return
    register_for_transformers()
    config = AutoConfig.from_pretrained(options.base) if options.base else full_model()
    training = TrainingConfig(
        batch_size=options.batch_size,
        rank=options.rank,
        target_modules=tuple(options.target_modules),
        gradient_checkpointing=options.gradient_checkpointing,
    )
    print(f"arithmetic, not a measurement; GiB at batch {options.batch_size}, held to a card of {options.card:g} GiB ")
    print(f"with {options.spare:g} GiB of it spare")
    print(table(config, training, options.length, options.labelled, options.card - options.spare))


if __name__ == "__main__":
    main()
