"""A sheet of held-out pictures with what a checkpoint says about them, right in green and wrong in red.

python -m qwen_vqa.train.demo.sheet serving/demo_checkpoint sheet.png
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from qwen_vqa.train.drawn.drawing import draw
from qwen_vqa.train.drawn.held_out import SKILLS, HeldOutCase, cases
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference

COLUMNS, WIDTH, PICTURE, CAPTION = 6, 250, 170, 56
GREEN, RED, BLACK = (20, 120, 20), (200, 20, 20), (0, 0, 0)
SHOWN = tuple(skill for skill in SKILLS if skill not in ("follow_up", "pictures", "describe"))


def say(model, processor, picture: np.ndarray, question: str) -> str:
    """The model's answer, decoded greedily."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    inputs = processor(text=[prompt], images=[picture], return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=40, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(tokens, skip_special_tokens=True)


def tile(model, processor, case: HeldOutCase) -> np.ndarray:
    """One picture over its question and answer."""
    picture, turn = draw(case.scenes[0])[0], case.turns[-1]
    answer = say(model, processor, picture, turn.question)
    scale = min((WIDTH - 10) / picture.shape[1], (PICTURE - 6) / picture.shape[0])
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    canvas = np.full((PICTURE + CAPTION, WIDTH, 3), 255, np.uint8)
    canvas[4 : 4 + small.shape[0], 5 : 5 + small.shape[1]] = small
    right = answer == turn.answer
    write(canvas, turn.question, PICTURE + 18, BLACK)
    write(canvas, answer if right else f"{answer} ({turn.answer})", PICTURE + 38, GREEN if right else RED)
    return canvas


def write(canvas: np.ndarray, text: str, y: int, colour: tuple[int, int, int]) -> None:
    cv2.putText(canvas, text[:40], (6, y), cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, 1, cv2.LINE_AA)


def make_sheet(checkpoint: Path, file: Path, each: int = 3) -> None:
    """`each` cases of every skill that asks one question about one picture."""
    model, processor = load_reference(checkpoint, torch.float32), load_processor(checkpoint)
    tiles = [tile(model, processor, case) for skill in SHOWN for case in cases(skill, each)]
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % COLUMNS)
    rows = [np.concatenate(tiles[i : i + COLUMNS], axis=1) for i in range(0, len(tiles), COLUMNS)]
    # 256 colours are enough for a look, and a quarter of the bytes.
    Image.fromarray(np.concatenate(rows)).quantize(256).save(file, optimize=True)


def main(argv: list[str] | None = None) -> None:
    """Write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("file", type=Path, help="the PNG to write")
    options = parser.parse_args(argv)
    make_sheet(options.checkpoint, options.file)


if __name__ == "__main__":
    main()
