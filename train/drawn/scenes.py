"""Scenes: what a picture shows, decided before a pixel is drawn. The same seed makes the same scene."""

import random
from dataclasses import dataclass, field, replace

from qwen_vqa.train.drawn import sprites, words

SIZES = ((96, 128), (128, 224), (224, 640))  # pixels of the longer side: draw within one of these
SIZE_WEIGHTS = (0.35, 0.4, 0.25)
ASPECTS = (4 / 3, 4 / 3, 1.0, 1.0, 3 / 4, 3 / 2, 16 / 9, 2 / 3)
LIGHT = ((255, 255, 255), (250, 250, 245), (240, 240, 240), (255, 250, 230), (225, 235, 245), (215, 215, 220))
MIDDLE = (
    (190, 210, 235),
    (200, 225, 200),
    (235, 210, 210),
    (160, 165, 170),
    (225, 215, 180),
    (150, 180, 190),
)
DARK = ((40, 44, 52), (20, 30, 60), (60, 40, 40), (25, 55, 45), (70, 70, 75), (55, 30, 70))


@dataclass(frozen=True, slots=True)
class Thing:
    """A shape, an emoji or a number: centre and size as shares of the picture's width, height, shorter side.

    `size` is the diameter of a shape, the side of an emoji, the height of an 8 in a number.
    `style` is the row of the sprite sheet. An emoji has no colour to ask for: "".
    """

    kind: str
    name: str
    colour: str
    x: float
    y: float
    size: float
    angle: float = 0.0
    style: int = 0
    rgb: tuple[int, int, int] = (0, 0, 0)
    border: tuple[int, int, int] | None = None

    @property
    def phrase(self) -> str:
        """'red circle', 'cat', 'number 42'."""
        if self.kind == "number":
            return f"number {self.name}"
        return f"{self.colour} {self.name}" if self.kind == "shape" else self.name

    @property
    def place(self) -> str:
        """Its place in the picture, or "" near a border between two."""
        column, row = _third(self.x), _third(self.y)
        return "" if column is None or row is None else words.PLACES[row][column]


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture before it is drawn. `visibility` is clear, dark or blurred; in the last two nothing is shown."""

    width: int
    height: int
    background: tuple[int, int, int]
    background_end: tuple[int, int, int]
    things: tuple[Thing, ...] = ()
    visibility: str = "clear"
    brightness: float = 1.0
    blur: float = 0.0
    noise: float = 0.0
    seed: int = 0
    held_out: bool = field(default=False)


def _third(position: float) -> int | None:
    for index, (low, high) in enumerate(((0.0, 0.29), (0.38, 0.62), (0.71, 1.0))):
        if low <= position <= high:
            return index
    return None


def make_scene(seed: int, held_out: bool = False, kind: str | None = None) -> Scene:
    """A scene of the kind users ask about; `held_out` draws with the fonts and emoji kept for evaluation."""
    rng = random.Random(f"{'held out' if held_out else 'training'} {seed}")
    kind = (
        kind
        or rng.choices(
            ("shape", "group", "shapes", "emoji", "emoji_group", "number", "mixed", "empty"),
            (14, 18, 22, 14, 8, 20, 6, 2),
        )[0]
    )
    scene = blank_scene(rng, seed, held_out)
    scene = replace(scene, things=tuple(_inside(thing, scene) for thing in _MAKERS[kind](rng, scene)))
    draw = rng.random()
    if draw < 0.06:
        return replace(scene, visibility="dark", brightness=rng.uniform(0.0, 0.07))
    if draw < 0.12 and scene.things:
        largest = max(thing.size for thing in scene.things)
        return replace(scene, visibility="blurred", blur=largest * rng.uniform(0.4, 0.7))
    return scene


def blank_scene(rng: random.Random, seed: int, held_out: bool) -> Scene:
    longer = rng.randint(*rng.choices(SIZES, SIZE_WEIGHTS)[0])
    aspect = rng.choice(ASPECTS)
    width, height = (longer, round(longer / aspect)) if aspect >= 1 else (round(longer * aspect), longer)
    background = _jitter(rng, rng.choice(rng.choices((LIGHT, MIDDLE, DARK), (60, 22, 18))[0]), 8)
    end = _jitter(rng, background, 40) if rng.random() < 0.25 else background
    return Scene(
        width,
        height,
        background,
        end,
        brightness=rng.uniform(0.75, 1.0) if rng.random() < 0.3 else 1.0,
        blur=rng.uniform(0.0, 0.012) if rng.random() < 0.3 else 0.0,
        noise=rng.uniform(0, 10) if rng.random() < 0.3 else 0.0,
        seed=seed,
        held_out=held_out,
    )


def make_shape(rng, scene, x, y, size, name=None, colour=None, avoid=()) -> Thing:
    """A shape whose colour stands out from the background; `avoid` lists colours not to take."""
    name = name or rng.choice(words.SHAPES)
    colour, rgb = pick_colour(rng, scene, colour, avoid)
    border = rng.choice(((0, 0, 0), (255, 255, 255), (60, 60, 60))) if rng.random() < 0.15 else None
    return Thing("shape", name, colour, x, y, size, rng.uniform(-15, 15), 0, rgb, border)


def make_emoji(rng, scene, x, y, size, name=None, style=None) -> Thing:
    name = name or rng.choice(tuple(words.EMOJI))
    style = rng.choice(sprites.design_indices(scene.held_out)) if style is None else style
    return Thing("emoji", name, "", x, y, size, rng.uniform(-12, 12), style)


def make_number(rng, scene, x, y, max_width, max_height, digits=None) -> Thing:
    """A number as large as fits a box given as shares of the picture's width and height."""
    if digits is None:
        length = rng.choices((1, 2, 3), (25, 35, 40))[0]
        digits = "".join(rng.choice("123456789" if i == 0 and length > 1 else "0123456789") for i in range(length))
    style = rng.choice(sprites.face_indices(scene.held_out))
    advances = sprites.faces()[style]["advances"]
    width_per_height = sum(advances[int(digit)] for digit in digits) / sprites.GLYPH_INK_HEIGHT
    shorter = min(scene.width, scene.height)
    size = min(max_width * scene.width / width_per_height, max_height * scene.height) / shorter
    colour, rgb = pick_colour(rng, scene, None, ())
    return Thing("number", digits, colour, x, y, size, rng.uniform(-10, 10), style, rgb)


def pick_colour(rng, scene, colour, avoid) -> tuple[str, tuple[int, int, int]]:
    for _ in range(50):
        name = colour or rng.choice(tuple(words.COLOURS))
        rgb = _jitter(rng, words.COLOURS[name], 14)
        if name not in avoid and _distance(rgb, scene.background) > 90 and _distance(rgb, scene.background_end) > 70:
            break
    return name, rgb


def _single_shape(rng, scene):
    return [make_shape(rng, scene, *_anywhere(rng), rng.uniform(0.25, 0.7))]


def _single_emoji(rng, scene):
    return [make_emoji(rng, scene, *_anywhere(rng), rng.uniform(0.4, 0.9))]


def _number(rng, scene):
    x, y = rng.uniform(0.44, 0.56), rng.uniform(0.42, 0.58)
    return [make_number(rng, scene, x, y, rng.uniform(0.5, 0.88), rng.uniform(0.4, 0.75))]


def _group(rng, scene):
    """Two to five of one kind, and sometimes a second kind beside them; now and then a single one."""
    first = rng.choices((1, 2, 3, 4, 5), (1, 3, 3, 3, 3))[0]
    second = rng.choice((0, 0, 1, 2)) if first <= 4 else 0
    cells = _cells(rng, scene, first + second)
    name, other = rng.sample(words.SHAPES, 2)
    colour, _ = pick_colour(rng, scene, None, ())
    other_colour, _ = pick_colour(rng, scene, None, (colour,))
    size = rng.uniform(0.2, 0.3)
    things = [make_shape(rng, scene, x, y, size * rng.uniform(0.9, 1.1), name, colour) for x, y in cells[:first]]
    things += [make_shape(rng, scene, x, y, size, other, other_colour) for x, y in cells[first:]]
    return things


def _shapes(rng, scene):
    """Two to four shapes, no two alike in name or colour."""
    count = rng.choices((2, 3, 4), (5, 3, 2))[0]
    names, taken, things = rng.sample(words.SHAPES, count), [], []
    for name, (x, y) in zip(names, _cells(rng, scene, count), strict=True):
        things.append(make_shape(rng, scene, x, y, rng.uniform(0.22, 0.34), name, avoid=taken))
        taken.append(things[-1].colour)
    return things


def _emoji_group(rng, scene):
    """Two or three different emoji, or one to four alike."""
    if rng.random() < 0.5:
        names = rng.sample(tuple(words.EMOJI), rng.choice((2, 2, 3)))
        return [
            make_emoji(rng, scene, x, y, rng.uniform(0.3, 0.38), name)
            for name, (x, y) in zip(names, _cells(rng, scene, len(names)), strict=True)
        ]
    name, style = rng.choice(tuple(words.EMOJI)), rng.choice(sprites.design_indices(scene.held_out))
    count = rng.choice((2, 3, 4))
    return [make_emoji(rng, scene, x, y, rng.uniform(0.28, 0.34), name, style) for x, y in _cells(rng, scene, count)]


def _mixed(rng, scene):
    """A number over or under a shape or an emoji."""
    up = rng.random() < 0.5
    make = make_shape if rng.random() < 0.5 else make_emoji
    number = make_number(rng, scene, rng.uniform(0.45, 0.55), 0.28 if up else 0.72, 0.6, 0.38)
    return [number, make(rng, scene, rng.choice((0.2, 0.5, 0.8)), 0.8 if up else 0.2, 0.3)]


_MAKERS = {
    "shape": _single_shape,
    "group": _group,
    "shapes": _shapes,
    "emoji": _single_emoji,
    "emoji_group": _emoji_group,
    "number": _number,
    "mixed": _mixed,
    "empty": lambda rng, scene: [],
}


def _anywhere(rng: random.Random) -> tuple[float, float]:
    """Near the centre, or in one of the nine places."""
    if rng.random() < 0.4:
        return rng.uniform(0.4, 0.6), rng.uniform(0.4, 0.6)
    return rng.choice((0.2, 0.5, 0.8)) + rng.uniform(-0.06, 0.06), rng.choice((0.2, 0.5, 0.8)) + rng.uniform(
        -0.06, 0.06
    )


def _cells(rng: random.Random, scene: Scene, count: int) -> list[tuple[float, float]]:
    """Centres in `count` different ninths of the picture."""
    cells = rng.sample([(x, y) for x in (1 / 6, 1 / 2, 5 / 6) for y in (1 / 6, 1 / 2, 5 / 6)], count)
    return [(x + rng.uniform(-0.03, 0.03), y + rng.uniform(-0.03, 0.03)) for x, y in cells]


def _inside(thing: Thing, scene: Scene) -> Thing:
    """The thing moved so that the picture's edge does not cut it; a number is made to fit already."""
    if thing.kind == "number":
        return thing
    shorter = min(scene.width, scene.height)
    x_margin, y_margin = thing.size / 2 * shorter / scene.width, thing.size / 2 * shorter / scene.height
    x = min(max(thing.x, x_margin), 1 - x_margin)
    return replace(thing, x=x, y=min(max(thing.y, y_margin), 1 - y_margin))


def _jitter(rng: random.Random, rgb: tuple[int, ...], amount: int) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, value + rng.randint(-amount, amount))) for value in rgb)
    return red, green, blue


def _distance(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5
