"""Rendered scenes as three data sets in the exact formats of LLaVA-Instruct, TextVQA and VizWiz.

python -m qwen_vqa.train.drawn.example_data --out runs/example/data
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from qwen_vqa.plugin.chat.prompts import UNANSWERABLE
from qwen_vqa.train.drawn.conversations import SMALL_TALK
from qwen_vqa.train.drawn.drawing import draw
from qwen_vqa.train.drawn.drawn_questions import DrawnTurn, ask, follow_up
from qwen_vqa.train.drawn.scenes import Scene, make_scene

FIRST_SEED = {"train": 4_000_000_000, "val": 5_000_000_000}  # no stage of the demo draws these pictures
PEOPLE = 10
CHATTING = ("colour", "colour_of_it", "shape", "shape_by_colour", "count", "position", "exists", "name", "describe")
ASKING = ("colour", "colour_of_it", "shape", "count", "name", "unanswerable")
SMALL_TALK_SHARE = 0.03


def write_data_sets(out: Path, split: str, number: int) -> list[str]:
    """`number` entries of each data set for "train" or "val"; returns what `--data` takes for them."""
    return [_write_llava(out, split, number), _write_textvqa(out, split, number), _write_vizwiz(out, split, number)]


def _write_llava(out: Path, split: str, number: int) -> str:
    """Conversations of one to three rounds, now and then without a picture."""
    file, folder = out / f"llava_instruct_{split}.json", out / f"{split}2017"
    entries: list[dict[str, Any]] = []
    for rng, scene, index in _scenes(split, number, "llava"):
        if split == "train" and rng.random() < SMALL_TALK_SHARE:
            turns = [DrawnTurn("talk", *rng.choice(list(SMALL_TALK.items())))]
            entries.append({"id": f"{index:012}", "conversations": _rounds(turns)})
            continue
        turns = _turns(rng, scene, rng.randint(1, 3) if split == "train" else 1)
        turns[0] = DrawnTurn(turns[0].skill, f"<image>\n{turns[0].question}", turns[0].answer)
        name = f"{index:012}.jpg"
        _save(scene, folder / name)
        entries.append({"id": f"{index:012}", "image": name, "conversations": _rounds(turns)})
    file.write_text(json.dumps(entries), encoding="utf-8")
    return f"llava={file},images={folder}"


def _write_textvqa(out: Path, split: str, number: int) -> str:
    """What is written in the picture; three of ten people misread it."""
    file, folder = out / f"TextVQA_0.5.1_{split}.json", out / f"{split}_images"
    entries = []
    for rng, scene, index in _scenes(split, number, "textvqa", "number"):
        turn = ask(rng, scene, ("reading",)) or ask(rng, scene)
        assert turn is not None
        image_id = f"{index:016x}"
        _save(scene, folder / f"{image_id}.jpg")
        answers = [turn.answer] * 7 + [_misread(rng, turn.answer) for _ in range(3)]
        rng.shuffle(answers)
        entry = {"question": turn.question, "image_id": image_id, "question_id": index, "answers": answers}
        entries.append(entry | {"set_name": split, "image_width": scene.width, "image_height": scene.height})
    release = {"dataset_type": split, "dataset_name": "textvqa", "dataset_version": "0.5.1", "data": entries}
    file.write_text(json.dumps(release), encoding="utf-8")
    return f"textvqa={file},images={folder}"


def _write_vizwiz(out: Path, split: str, number: int) -> str:
    """Questions that a picture may not answer; some people see nothing even then when it does."""
    file, folder = out / "Annotations" / f"{split}.json", out / split
    entries = []
    for rng, scene, index in _scenes(split, number, "vizwiz"):
        turn = ask(rng, scene, ASKING)
        assert turn is not None
        name = f"VizWiz_{split}_{index:08}.jpg"
        _save(scene, folder / name)
        answers = [turn.answer] * 8 + [UNANSWERABLE] * 2
        rng.shuffle(answers)
        said = [{"answer": answer, "answer_confidence": "yes"} for answer in answers]
        kind = turn.answer if turn.answer == UNANSWERABLE else "number" if turn.answer.isdigit() else "other"
        entry = {"image": name, "question": turn.question, "answers": said, "answer_type": kind}
        entries.append(entry | {"answerable": int(turn.answer != UNANSWERABLE)})
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(entries), encoding="utf-8")
    return f"vizwiz={file},images={folder}"


def _scenes(split: str, number: int, name: str, kind: str | None = None):
    for index in tqdm(range(number), desc=f"drawing {name} {split}", disable=None):
        rng = random.Random(f"{name} {split} {index}")
        seed = FIRST_SEED[split] + 3 * index + ("llava", "textvqa", "vizwiz").index(name)
        yield rng, make_scene(seed, held_out=split == "val", kind=kind), index


def _turns(rng: random.Random, scene: Scene, length: int) -> list[DrawnTurn]:
    turns: list[DrawnTurn] = []
    while len(turns) < length:
        subject = turns[-1].subject if turns else None
        turn = follow_up(rng, scene, subject) if subject else None
        turn = turn or ask(rng, scene, CHATTING)
        assert turn is not None
        turns.append(turn)
    return turns


def _rounds(turns: list[DrawnTurn]) -> list[dict[str, str]]:
    sides = (("human", "question"), ("gpt", "answer"))
    return [{"from": side, "value": getattr(turn, text)} for turn in turns for side, text in sides]


def _misread(rng: random.Random, text: str) -> str:
    place = rng.randrange(len(text))
    return text[:place] + rng.choice("0123456789") + text[place + 1 :]


def _save(scene: Scene, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw(scene)[0]).save(file, quality=92)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--train", type=int, default=2000, help="training entries each (default: %(default)s)")
    parser.add_argument("--val", type=int, default=150, help="held-out entries each (default: %(default)s)")
    options = parser.parse_args(argv)
    for split, number in (("train", options.train), ("val", options.val)):
        print(*(f"--data {text}" for text in write_data_sets(options.out, split, number)), sep="\n")


if __name__ == "__main__":
    main()
