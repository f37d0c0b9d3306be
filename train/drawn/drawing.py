"""Draws a scene as an RGB picture, and says which thing stands at each patch of the encoder's canvas."""

import functools
import math
import random
from dataclasses import dataclass

import cv2
import numpy as np

from qwen_vqa.train.drawn import sprites, words
from qwen_vqa.train.drawn.scenes import Scene, Thing

CLASSES = ("nothing", *words.SHAPES, *words.EMOJI, *"0123456789")
COLOUR_NAMES = ("none", *words.COLOURS)
PLACE_NAMES = tuple(place for row in words.PLACES for place in row)
FIRST_SHAPE, FIRST_EMOJI = 1, 1 + len(words.SHAPES)
FIRST_DIGIT = FIRST_EMOJI + len(words.EMOJI)
IGNORED = -100
COVERED, TOUCHED = 0.35, 0.08  # shares of a patch that make it part of a thing, or of nothing for certain


@dataclass(frozen=True, slots=True)
class Mark:
    """A box in the picture, in pixels, with what stands in it; a number is one mark a digit."""

    label: int
    colour: int
    place: int
    index: int
    x: float
    y: float
    width: float
    height: float


def draw(scene: Scene) -> tuple[np.ndarray, list[Mark]]:
    """The picture, uint8 RGB [height, width, 3], and its marks."""
    rng = random.Random(scene.seed)
    image = _background(scene)
    marks = [mark for thing in scene.things for mark in _PAINTERS[thing.kind](image, thing)]
    shorter = min(scene.width, scene.height)
    if scene.blur * shorter > 0.3:
        image = _blurred(image, scene.blur * shorter)
    if scene.brightness < 1:
        image = cv2.convertScaleAbs(image, alpha=scene.brightness)
    if scene.noise:
        bank = _noise_bank()
        top, left = rng.randrange(bank.shape[0] - scene.height), rng.randrange(bank.shape[1] - scene.width)
        noise = bank[top : top + scene.height, left : left + scene.width]
        image = cv2.addWeighted(image, 1.0, noise, scene.noise / 10, -128 * scene.noise / 10)
    return image, marks


def _blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur; a strong one on a smaller copy, which looks the same and costs little."""
    height, width = image.shape[:2]
    factor = max(1.0, sigma / 2)
    small = cv2.resize(
        image, (max(1, round(width / factor)), max(1, round(height / factor))), interpolation=cv2.INTER_AREA
    )
    small = cv2.GaussianBlur(small, (0, 0), sigma / factor, borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


@functools.cache
def _noise_bank() -> np.ndarray:
    """Noise of standard deviation 10 around 128, larger than any picture."""
    noise = np.random.default_rng(0).normal(128, 10, (800, 800, 3))
    return noise.clip(0, 255).astype(np.uint8)


def _background(scene: Scene) -> np.ndarray:
    image = np.empty((scene.height, scene.width, 3), np.uint8)
    if scene.background == scene.background_end:
        image[:] = scene.background
    else:
        ramp = np.linspace(0, 1, scene.height, dtype=np.float32)[:, None]
        rows = np.array(scene.background, np.float32) * (1 - ramp) + np.array(scene.background_end, np.float32) * ramp
        image[:] = rows[:, None]
    return image


def _paint_shape(image: np.ndarray, thing: Thing) -> list[Mark]:
    x, y, size = _pixels(image, thing)
    sprites.paint_polygon(image, thing.name, thing.rgb, x, y, size, thing.angle, thing.border)
    label = FIRST_SHAPE + words.SHAPES.index(thing.name)
    return [Mark(label, COLOUR_NAMES.index(thing.colour), _place(thing), 0, x, y, size * 0.85, size * 0.85)]


def _paint_emoji(image: np.ndarray, thing: Thing) -> list[Mark]:
    x, y, size = _pixels(image, thing)
    column = list(words.EMOJI).index(thing.name)
    tile = sprites.emoji_sheet()[thing.style, column]
    rgb, mask = np.ascontiguousarray(tile[..., :3]), np.ascontiguousarray(tile[..., 3])
    sprites.paint_mask(image, mask, rgb, x, y, size / sprites.EMOJI_SIZE, thing.angle)
    return [Mark(FIRST_EMOJI + column, IGNORED, _place(thing), 0, x, y, size * 0.9, size * 0.9)]


def _paint_number(image: np.ndarray, thing: Thing) -> list[Mark]:
    x, y, size = _pixels(image, thing)
    scale = size / sprites.GLYPH_INK_HEIGHT
    advances = [sprites.faces()[thing.style]["advances"][int(digit)] * scale for digit in thing.name]
    turn = math.radians(thing.angle)
    # The ink's middle is above the tile's.
    drop = (sprites.GLYPH_HEIGHT / 2 - (sprites.GLYPH_BASELINE - sprites.GLYPH_INK_HEIGHT / 2)) * scale
    along, marks = -sum(advances) / 2, []
    for index, (digit, advance) in enumerate(zip(thing.name, advances, strict=True), start=1):
        offset = along + advance / 2
        centre_x, centre_y = x + offset * math.cos(turn), y + offset * math.sin(turn)
        mask = sprites.digit_sheet()[thing.style, int(digit)]
        tile_x, tile_y = centre_x - drop * math.sin(turn), centre_y + drop * math.cos(turn)
        sprites.paint_mask(image, mask, thing.rgb, tile_x, tile_y, scale, thing.angle)
        label, colour = FIRST_DIGIT + int(digit), COLOUR_NAMES.index(thing.colour)
        marks.append(Mark(label, colour, _place(thing), index, centre_x, centre_y, advance * 0.9, size))
        along += advance
    return marks


_PAINTERS = {"shape": _paint_shape, "emoji": _paint_emoji, "number": _paint_number}


def _pixels(image: np.ndarray, thing: Thing) -> tuple[float, float, float]:
    height, width = image.shape[:2]
    return thing.x * width, thing.y * height, thing.size * min(width, height)


def _place(thing: Thing) -> int:
    return PLACE_NAMES.index(thing.place) if thing.place else IGNORED


def patch_labels(marks: list[Mark], scale: float, grid: int, patch: int) -> np.ndarray:
    """What each patch shows, int64 [5, grid * grid]: class, colour, digit's index, place, centre of a thing.

    Args:
        marks: of the picture; `scale` is canvas pixels per picture pixel.
        grid: patches along a side of the canvas, each of `patch` pixels.
    """
    labels = np.zeros((5, grid, grid), np.int64)
    labels[1:4] = IGNORED
    best = np.zeros((grid, grid), np.float32)
    for mark in marks:
        across = _overlap(mark.x * scale / patch, mark.width * scale / patch, grid)
        down = _overlap(mark.y * scale / patch, mark.height * scale / patch, grid)
        covered = down[:, None] * across[None, :]
        wins = covered > np.maximum(best, TOUCHED)
        best = np.where(wins, covered, best)
        for row, value in enumerate((mark.label, mark.colour, mark.index, mark.place)):
            labels[row][wins] = value
    doubtful = (best > TOUCHED) & (best < COVERED)
    labels[0][doubtful] = IGNORED
    for mark in marks:
        column, row = int(mark.x * scale / patch), int(mark.y * scale / patch)
        if 0 <= column < grid and 0 <= row < grid:
            labels[:, row, column] = (mark.label, mark.colour, mark.index, mark.place, 1)
    return labels.reshape(5, -1)


def _overlap(centre: float, length: float, grid: int) -> np.ndarray:
    edges = np.arange(grid, dtype=np.float32)
    low, high = centre - length / 2, centre + length / 2
    return np.clip(np.minimum(edges + 1, high) - np.maximum(edges, low), 0, 1)
