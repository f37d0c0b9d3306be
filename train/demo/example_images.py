"""A few pictures to show, with questions the model answers right: serving/demo_images.

python -m qwen_vqa.train.demo.example_images serving/demo_checkpoint serving/demo_images
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import torch

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.train.demo.demo_evaluation import Evaluator
from qwen_vqa.train.drawn.descriptions import groups_of
from qwen_vqa.train.drawn.drawing import draw
from qwen_vqa.train.drawn.drawn_questions import DrawnTurn
from qwen_vqa.train.drawn.held_out import FIRST_SEED, HeldOutCase
from qwen_vqa.train.drawn.scenes import Scene, make_scene
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference

WIDTH, HEIGHT = 480, 360


def _shapes(scene: Scene) -> list[DrawnTurn]:
    first = scene.things[0]
    return [
        DrawnTurn("shape", f"What shape is {first.colour}?", first.name),
        DrawnTurn("colour", f"What color is the {first.name}?", first.colour),
        DrawnTurn("position", f"Where is the {first.name}?", first.place),
    ]


def _group(scene: Scene) -> list[DrawnTurn]:
    name = scene.things[0].name
    plural = name + ("es" if name == "cross" else "s")
    return [
        DrawnTurn("count", f"How many {plural} are there?", str(len(groups_of(scene)[0]))),
        DrawnTurn("colour", f"What color are the {plural}?", scene.things[0].colour),
    ]


def _number(scene: Scene) -> list[DrawnTurn]:
    return [DrawnTurn("reading", "What number is written here?", scene.things[0].name)]


def _emoji(scene: Scene) -> list[DrawnTurn]:
    name = scene.things[0].name
    return [
        DrawnTurn("emoji", "What is this?", ("an " if name[0] in "aeiou" else "a ") + name),
        DrawnTurn("unanswerable", "What number is written here?", "unanswerable"),
    ]


# file -> kind of scene, whether it is one to show, its questions
EXAMPLES: dict[str, tuple[str, Callable[[Scene], bool], Callable[[Scene], list[DrawnTurn]]]] = {
    "number": ("number", lambda s: len(s.things[0].name) == 3, _number),
    "shapes": ("shapes", lambda s: len(s.things) == 3 and all(t.place for t in s.things), _shapes),
    "group": ("group", lambda s: len(groups_of(s)) == 1 and 3 <= len(s.things) <= 4, _group),
    "emoji": ("emoji", lambda s: s.things[0].name not in ("grapes", "scissors"), _emoji),
}


def make_examples(checkpoint: Path, folder: Path) -> None:
    """Write the pictures and examples.json; each is the first held-out scene whose questions all go right."""
    evaluator = Evaluator(load_reference(checkpoint, torch.float32), load_processor(checkpoint))
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for name, (kind, fits, questions) in EXAMPLES.items():
        scene, turns = first_right(evaluator, kind, fits, questions)
        picture, _ = draw(scene)
        cv2.imwrite(str(folder / f"{name}.png"), picture[..., ::-1])
        entries += [{"image": f"{name}.png", "question": t.question, "answer": t.answer} for t in turns]
    (folder / "examples.json").write_text(json.dumps(entries, indent=2) + "\n")
    print(f"wrote {len(EXAMPLES)} pictures and {len(entries)} questions to {folder}")


def first_right(evaluator: Evaluator, kind: str, fits, questions) -> tuple[Scene, list[DrawnTurn]]:
    for seed in range(FIRST_SEED + 90_000_000, FIRST_SEED + 90_002_000):
        scene = make_scene(seed, kind != "emoji", kind)
        if scene.visibility != "clear" or scene.noise or scene.blur or scene.brightness < 1 or not fits(scene):
            continue
        scene = replace(scene, width=WIDTH, height=HEIGHT)
        if scene.things[0].kind == "number":
            scene = replace(scene, things=(replace(scene.things[0], size=min(scene.things[0].size, 0.45)),))
        turns = questions(scene)
        alone = [(turn,) for turn in turns]
        in_a_row = [tuple(turns[: last + 1]) for last in range(1, len(turns))]
        if all(evaluator.answers_right([HeldOutCase(kind, (scene,), asked) for asked in alone + in_a_row])):
            return scene, turns
    raise UserError(f"no {kind} picture was answered right: train the demo further before it is shown.")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(argv)
    make_examples(options.checkpoint, options.folder)


if __name__ == "__main__":
    main()
