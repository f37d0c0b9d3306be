"""Questions of the demo's held-out pictures as a data set with ten answers each.

python -m tests.evaluation_data runs/questions 30
"""

import json
import random
import sys
from pathlib import Path

from PIL import Image

from qwen_vqa.train.drawn.conversations import messages_of
from qwen_vqa.train.drawn.drawing import draw
from qwen_vqa.train.drawn.held_out import cases


def write_questions(folder: Path, number: int, skills: tuple[str, ...] = ("colour", "count", "unanswerable")) -> str:
    """A JSONL file and its pictures, the skill as the answer type; returns what `--data` takes.

    Seven of ten people give the demo's target, the others something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "questions.jsonl").open("w") as lines:
        for skill in skills:
            for place, case in enumerate(cases(skill, number)):
                name = f"{skill}-{place}"
                Image.fromarray(draw(case.scenes[0])[0]).save(folder / f"{name}.png")
                messages = messages_of(random.Random(case.scenes[0].seed), list(case.turns), 1)
                for part in messages[0]["content"]:
                    if part["type"] == "image":
                        part["image"] = f"{name}.png"
                target = messages[-1]["content"]
                entry = {"id": name, "messages": messages, "answers": [target] * 7 + ["none of it", "?", ""]}
                print(json.dumps({**entry, "answer_type": skill}), file=lines)
    return f"local={folder / 'questions.jsonl'}"


if __name__ == "__main__":
    print(write_questions(Path(sys.argv[1]), int(sys.argv[2])))
