"""The drawings that scenes are made of: emoji and digits from assets/, shapes as polygons.

Held out for evaluation: whole font families, and one of the three emoji designs.
"""

import functools
import json
import math
from pathlib import Path

import cv2
import numpy as np

from qwen_vqa.train.drawn import words

ASSETS = Path(__file__).parent / "assets"
EMOJI_SIZE = 64
GLYPH_WIDTH, GLYPH_HEIGHT, GLYPH_BASELINE = 88, 100, 82
GLYPH_INK_HEIGHT = 66

TRAINING_DESIGNS = ("noto", "twemoji")
EVALUATION_DESIGNS = ("fluent",)
DESIGNS = TRAINING_DESIGNS + EVALUATION_DESIGNS
EVALUATION_FAMILIES = frozenset(
    [
        "anton",
        "arimo",
        "courier-prime",
        "fredoka",
        "jetbrains-mono",
        "kalam",
        "karla",
        "lora",
        "merriweather",
        "montserrat",
        "noto-serif",
        "oswald",
        "playfair-display",
        "pt-sans",
        "roboto",
        "rubik",
        "space-grotesk",
        "titillium-web",
        "zilla-slab",
    ]
)

_FIXED_POINT = 4  # bits of sub-pixel position that cv2 takes


@functools.cache
def emoji_sheet() -> np.ndarray:
    """[designs, names, size, size, 4], RGB and coverage."""
    sheet = cv2.cvtColor(read_sheet("emoji.png", cv2.IMREAD_UNCHANGED), cv2.COLOR_BGRA2RGBA)
    tiles = sheet.reshape(len(DESIGNS), EMOJI_SIZE, len(words.EMOJI), EMOJI_SIZE, 4)
    return np.ascontiguousarray(tiles.transpose(0, 2, 1, 3, 4))


@functools.cache
def digit_sheet() -> np.ndarray:
    """[faces, 10, height, width], coverage 0 to 255."""
    sheet = read_sheet("digits.png", cv2.IMREAD_GRAYSCALE)
    tiles = sheet.reshape(-1, GLYPH_HEIGHT, 10, GLYPH_WIDTH)
    return np.ascontiguousarray(tiles.transpose(0, 2, 1, 3))


def read_sheet(name: str, flags: int) -> np.ndarray:
    sheet = cv2.imread(str(ASSETS / name), flags)
    if sheet is None:
        raise FileNotFoundError(f"{ASSETS / name} is missing or no PNG; it comes with the project's source.")
    return np.asarray(sheet)


@functools.cache
def faces() -> list[dict]:
    """Family, weight, licence and advances of each row of the digit sheet."""
    return json.loads((ASSETS / "digits.json").read_text())


@functools.cache
def face_indices(held_out: bool) -> tuple[int, ...]:
    """The faces a training scene may use, or those that only evaluation sees."""
    return tuple(i for i, face in enumerate(faces()) if (face["family"] in EVALUATION_FAMILIES) == held_out)


def design_indices(held_out: bool) -> tuple[int, ...]:
    """The emoji designs a training scene may use, or those that only evaluation sees."""
    return tuple(DESIGNS.index(name) for name in (EVALUATION_DESIGNS if held_out else TRAINING_DESIGNS))


@functools.cache
def polygons(shape: str) -> tuple[np.ndarray, ...]:
    """Closed contours [points, 2] within the unit circle; a second one is a hole."""
    if shape in ("circle", "ring"):
        outer = regular(40)
        return (outer,) if shape == "circle" else (outer, outer * 0.55)
    if shape == "square":
        return (regular(4, start=math.pi / 4),)
    if shape == "diamond":
        return (regular(4) * np.array([0.72, 1.0]),)
    if shape == "triangle":
        return (regular(3, start=-math.pi / 2),)
    if shape == "star":
        radii = np.tile([1.0, 0.42], 5)[:, None]
        return (regular(10, start=-math.pi / 2) * radii,)
    if shape == "heart":
        t = np.linspace(0, 2 * math.pi, 40, endpoint=False)
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        return (np.stack([16 * np.sin(t) ** 3, -y - 2], 1) / 17,)
    if shape == "cross":
        a, b = 0.30, 0.92
        corners = [
            (-a, -b),
            (a, -b),
            (a, -a),
            (b, -a),
            (b, a),
            (a, a),
            (a, b),
            (-a, b),
            (-a, a),
            (-b, a),
            (-b, -a),
        ]
        return (np.array([*corners, (-a, -a)]),)
    raise ValueError(f"no shape is called {shape!r}; there are {', '.join(words.SHAPES)}.")


def regular(corners: int, start: float = 0.0) -> np.ndarray:
    angles = start + np.arange(corners) * 2 * math.pi / corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def paint_polygon(
    image: np.ndarray,
    shape: str,
    rgb: tuple,
    x: float,
    y: float,
    size: float,
    angle: float,
    border: tuple | None,
) -> None:
    """Draw a shape `size` pixels across, centred at x, y, turned by `angle` degrees."""
    turn = math.radians(angle)
    rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    contours = [
        np.round(((points @ rotation) * (size / 2) + (x, y)) * 2**_FIXED_POINT).astype(np.int32)
        for points in polygons(shape)
    ]
    cv2.fillPoly(image, contours, rgb, cv2.LINE_AA, _FIXED_POINT)
    if border is not None:
        cv2.polylines(image, contours, True, border, max(1, round(size * 0.05)), cv2.LINE_AA, _FIXED_POINT)


def paint_mask(
    image: np.ndarray,
    mask: np.ndarray,
    rgb: tuple | np.ndarray,
    x: float,
    y: float,
    scale: float,
    angle: float,
) -> None:
    """Blend `rgb` (one colour, or an image beside the mask) where `mask` says, its centre at x, y."""
    while scale < 0.4:  # halve first: sampling a large sprite sparsely would break its strokes
        mask = cv2.resize(mask, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        if isinstance(rgb, np.ndarray):
            rgb = cv2.resize(rgb, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        scale *= 2
    height, width = mask.shape
    turn = math.radians(angle)
    cos, sin = abs(math.cos(turn)) * scale, abs(math.sin(turn)) * scale
    half_w, half_h = (cos * width + sin * height) / 2 + 1, (sin * width + cos * height) / 2 + 1
    left, right = max(0, int(x - half_w)), min(image.shape[1], int(x + half_w) + 1)
    top, bottom = max(0, int(y - half_h)), min(image.shape[0], int(y + half_h) + 1)
    if left >= right or top >= bottom:
        return
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -angle, scale)
    matrix[0, 2] += x - left - 0.5 - (width - 1) / 2
    matrix[1, 2] += y - top - 0.5 - (height - 1) / 2
    size = (right - left, bottom - top)
    alpha = cv2.warpAffine(mask, matrix, size, flags=cv2.INTER_LINEAR).astype(np.float32)[..., None] / 255
    region = image[top:bottom, left:right]
    if isinstance(rgb, np.ndarray):
        rgb = cv2.warpAffine(rgb, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    region[:] = region + (np.asarray(rgb, np.float32) - region) * alpha + 0.5
