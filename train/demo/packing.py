"""Crowded pictures for the encoder's own training: many things, so many labels, in each."""

import random
from dataclasses import replace

from qwen_vqa.train.drawn.scenes import Scene, Thing, blank_scene, make_emoji, make_number, make_shape

GRIDS = ((2, 2), (3, 2), (2, 3), (3, 3), (3, 3))


def make_packed_scene(seed: int, held_out: bool = False) -> Scene:
    """A grid of single digits, shapes and emoji, or rows of numbers."""
    rng = random.Random(f"packed {held_out} {seed}")
    scene = blank_scene(rng, seed, held_out)
    things = _rows_of_numbers(rng, scene) if rng.random() < 0.35 else _grid(rng, scene)
    return replace(scene, things=tuple(things))


def _rows_of_numbers(rng: random.Random, scene: Scene) -> list[Thing]:
    rows = rng.choice((2, 3)) if scene.height >= scene.width else rng.choice((1, 2))
    tall = 1 / rows
    return [
        make_number(
            rng,
            scene,
            rng.uniform(0.46, 0.54),
            (row + 0.5) * tall,
            0.9,
            tall * rng.uniform(0.55, 0.8),
            _digits(rng),
        )
        for row in range(rows)
    ]


def _digits(rng: random.Random) -> str:
    return "".join(rng.choice("0123456789") for _ in range(rng.choice((2, 3, 3))))


def _grid(rng: random.Random, scene: Scene) -> list[Thing]:
    columns, rows = rng.choice(GRIDS)
    cell = min(scene.width / columns, scene.height / rows) / min(scene.width, scene.height)
    weights = rng.choice(((6, 2, 3), (1, 4, 4), (8, 1, 1)))  # digits, shapes, emoji
    things = []
    for column in range(columns):
        for row in range(rows):
            if rng.random() < 0.1:
                continue
            x = (column + 0.5 + rng.uniform(-0.08, 0.08)) / columns
            y = (row + 0.5 + rng.uniform(-0.08, 0.08)) / rows
            kind = rng.choices(("digit", "shape", "emoji"), weights)[0]
            if kind == "digit":
                digit = rng.choice("0123456789")
                height = cell * rng.uniform(0.6, 0.85) * min(scene.width, scene.height) / scene.height
                things.append(make_number(rng, scene, x, y, 0.85 / columns, height, digit))
            elif kind == "shape":
                things.append(make_shape(rng, scene, x, y, cell * rng.uniform(0.55, 0.85)))
            else:
                things.append(make_emoji(rng, scene, x, y, cell * rng.uniform(0.7, 0.95)))
    return things
