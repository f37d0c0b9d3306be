"""Accuracy of a demo checkpoint per skill on held-out pictures, next to the same model without the picture.

    python -m qwen_vqa.train.demo.demo_evaluation serving/demo_checkpoint

An answer counts when greedy decoding gives it to the letter, end of turn included; one forward pass over
question and answer shows that. `without picture` asks the same without an image, `other picture` shows
one that belongs to another question: what a model gets by guessing well.
"""

import argparse
import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qwen_vqa.plugin.checkpoint_files import ADAPTER_FOLDER
from qwen_vqa.train.data.collator import ConversationCollator
from qwen_vqa.train.demo.encoder import normalise
from qwen_vqa.train.drawn.conversations import messages_of
from qwen_vqa.train.drawn.drawing import draw
from qwen_vqa.train.drawn.held_out import SKILLS, HeldOutCase, adapter_cases, cases
from qwen_vqa.train.drawn.scenes import Scene
from qwen_vqa.train.drawn.sentences import SENTENCES
from qwen_vqa.train.model.reference_adapter import attach_adapter
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference

BATCH = 100


class Evaluator:
    """A checkpoint, or a reference model and its processor, asked the held-out questions."""

    def __init__(self, model, processor) -> None:
        self.model, self.processor = model, processor
        self.collate = ConversationCollator(processor)

    @torch.no_grad()
    def answers_right(self, asked: list[HeldOutCase], pictures: str = "own") -> list[bool]:
        """Whether greedy decoding gives each case's answer; `pictures` is own, other or none."""
        right: list[bool] = []
        for start in range(0, len(asked), BATCH):
            chunk = asked[start : start + BATCH]
            shown = chunk[1:] + chunk[:1] if pictures == "other" else chunk
            samples = []
            for case, source in zip(chunk, shown, strict=True):
                shares = (0,) if pictures == "none" else case.a_turn or (len(case.scenes),)
                rng = random.Random(case.scenes[0].seed)
                messages = messages_of(rng, list(case.turns), *shares)
                sample: dict[str, Any] = {"sample_id": case.skill, "messages": messages}
                if any(shares):
                    sample["image_features"] = self.features(source.scenes)
                samples.append(sample)
            right += self.samples_right(samples)
        return right

    def features(self, scenes: tuple[Scene, ...]) -> torch.Tensor:
        """[scenes, tokens, width]"""
        canvases = np.stack([self.processor.image_processor.canvas(draw(scene)[0]) for scene in scenes])
        return self.model.get_image_features(normalise(torch.from_numpy(canvases)))

    @torch.no_grad()
    def samples_right(self, samples: list[dict]) -> list[bool]:
        """Whether greedy decoding gives the last answer of each of the collator's samples."""
        batch = self.collate(samples)
        labels = batch.pop("labels")[:, 1:]
        guesses = self.model(**batch).logits[:, :-1].argmax(-1)
        right = []
        for guess, label in zip(guesses, labels, strict=True):
            positions = (label != -100).nonzero()[:, 0]
            gaps = (positions.diff() > 1).nonzero()[:, 0]
            last = positions[int(gaps[-1]) + 1 :] if len(gaps) else positions
            right.append(bool((guess[last] == label[last]).all()))
        return right


def evaluate(model, processor, number: int, skills: tuple[str, ...] = SKILLS) -> dict[str, dict]:
    """Per skill: n, accuracy, and accuracy blind, in percent."""
    evaluator = Evaluator(model, processor)
    table: dict[str, dict] = defaultdict(dict)
    for skill in skills:
        asked = list(cases(skill, number))
        table[skill]["n"] = len(asked)
        for column, pictures in (("accuracy", "own"), ("without picture", "none"), ("other picture", "other")):
            table[skill][column] = percent(evaluator.answers_right(asked, pictures))
    return dict(table)


def evaluate_adapter(checkpoint: Path, number: int) -> dict[str, dict]:
    """The adapter's answers: those of the base model, of the adapter on it, and of the adapter blind."""
    asked = adapter_cases(number)
    model, processor = load_reference(checkpoint, torch.float32), load_processor(checkpoint)
    base = percent(Evaluator(model, processor).answers_right(asked))
    model.language_model = attach_adapter(model.language_model, checkpoint / ADAPTER_FOLDER / SENTENCES)
    adapted = Evaluator(model, processor)
    row = {"n": number, "accuracy": percent(adapted.answers_right(asked)), "base model": base}
    row |= {"without picture": percent(adapted.answers_right(asked, "none"))}
    row |= {"other picture": percent(adapted.answers_right(asked, "other"))}
    return {f"adapter {SENTENCES}": row}


def percent(right: list[bool]) -> float:
    return round(100 * sum(right) / len(right), 1)


def print_table(table: dict[str, dict]) -> None:
    print(f"{'skill':<24}{'n':>6}{'accuracy':>10}{'no picture':>12}{'other picture':>15}")
    for skill, row in table.items():
        print(
            f"{skill:<24}{row['n']:>6}{row['accuracy']:>9.1f}%{row['without picture']:>11.1f}%"
            f"{row['other picture']:>14.1f}%"
        )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="checkpoint folder")
    parser.add_argument("-n", "--number", type=int, default=400, help="pictures a skill (default: %(default)s)")
    parser.add_argument("--skills", nargs="+", choices=SKILLS, default=SKILLS, help="(default: all)")
    parser.add_argument("--json", type=Path, help="write the table to this file, too")
    options = parser.parse_args(argv)
    model, processor = load_reference(options.checkpoint, torch.float32), load_processor(options.checkpoint)
    table = evaluate(model, processor, options.number, tuple(options.skills))
    if (options.checkpoint / ADAPTER_FOLDER / SENTENCES).is_dir():
        table |= evaluate_adapter(options.checkpoint, options.number)
    print_table(table)
    if options.json:
        options.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
