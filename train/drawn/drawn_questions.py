"""Questions about scenes with answers that are true of them, in the three skills: conversation, reading,
accessibility (name it, its colour, or `unanswerable` when the picture does not show it)."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from qwen_vqa.train.drawn import words
from qwen_vqa.train.drawn.descriptions import describe, group_phrase, groups_of, join
from qwen_vqa.train.drawn.scenes import Scene

NO, YES = "no", "yes"


@dataclass(frozen=True, slots=True)
class DrawnTurn:
    """One question, its answer, the skill it tests, and the name of the thing it was about."""

    skill: str
    question: str
    answer: str
    subject: str | None = None


def ask(rng: random.Random, scene: Scene, skills: Iterable[str] | None = None) -> DrawnTurn | None:
    """A question that can be asked of a scene without earlier turns; None when none of `skills` fits it."""
    names = list(skills or _SKILL_WEIGHTS)
    while names:
        name = rng.choices(names, [_SKILL_WEIGHTS[n] for n in names])[0]
        turn = _SKILLS[name](rng, scene)
        if turn is not None:
            return turn
        names.remove(name)
    return None


def ask_anything(rng: random.Random, scene: Scene) -> DrawnTurn:
    """A question that can be asked of a scene without earlier turns; any scene can be described."""
    turn = ask(rng, scene)
    assert turn is not None
    return turn


def follow_up(rng: random.Random, scene: Scene, subject: str) -> DrawnTurn | None:
    """A question that says 'it' or 'they' of what an earlier turn was about."""
    things = [thing for thing in scene.things if thing.name == subject]
    if not things or scene.visibility != "clear":
        return None
    options: list[DrawnTurn] = []
    thing, alone = things[0], len(things) == 1

    def add(template: str, answer: str) -> None:
        options.append(DrawnTurn("follow_up", rng.choice(words.QUESTIONS[template]), answer, subject))

    if thing.kind != "number":
        add("follow_count", str(len(things)))
    if thing.colour and len({other.colour for other in things}) == 1:
        add("follow_colour" if alone else "follow_colour_plural", thing.colour)
    if alone and thing.place:
        add("follow_position", thing.place)
    if alone and thing.kind == "shape":
        add("follow_shape", thing.name)
    return rng.choice(options) if options else None


def fill(rng: random.Random, template: str, thing: str = "", **names: str) -> str:
    """One of a template's wordings with its names filled in, now and then typed in a hurry."""
    sentence = rng.choice(words.QUESTIONS[template]).format(
        thing=thing,
        things=words.plural(thing) if thing else "",
        a_thing=words.with_article(thing) if thing else "",
        **names,
    )
    return hurried(rng, sentence)


def hurried(rng: random.Random, sentence: str) -> str:
    draw = rng.random()
    if draw < 0.12:
        sentence = sentence.lower()
    if 0.08 < draw < 0.16:
        sentence = sentence.rstrip("?.")
    return sentence


def _seen(scene: Scene) -> bool:
    return scene.visibility == "clear"


def _names(scene: Scene) -> list[str]:
    return list(dict.fromkeys(thing.name for thing in scene.things if thing.kind != "number"))


def _absent(rng: random.Random, scene: Scene) -> str:
    """A name the scene does not show, of a shape as often as of an emoji."""
    pool = words.SHAPES if rng.random() < 0.6 else tuple(words.EMOJI)
    return rng.choice([name for name in pool if name not in _names(scene)])


def _some_name(rng: random.Random, scene: Scene) -> str | None:
    names = _names(scene)
    return rng.choice(names) if names else None


def _colour(rng: random.Random, scene: Scene) -> DrawnTurn | None:
    candidates = [
        things
        for name in _names(scene)
        if (things := [t for t in scene.things if t.name == name]) and len({t.colour for t in things}) == 1
        if things[0].colour
    ]
    if not _seen(scene) or not candidates:
        return None
    things = rng.choice(candidates)
    template = "colour" if len(things) == 1 else "colour_plural"
    return DrawnTurn("colour", fill(rng, template, things[0].name), things[0].colour, things[0].name)


def _colour_of_it(rng: random.Random, scene: Scene) -> DrawnTurn | None:
    phrases = {thing.phrase for thing in scene.things}
    if not _seen(scene) or len(phrases) != 1 or not scene.things[0].colour:
        return None
    return DrawnTurn("colour", fill(rng, "colour_of_it"), scene.things[0].colour, scene.things[0].name)


def _colour_of_number(rng: random.Random, scene: Scene) -> DrawnTurn | None:
    numbers = [thing for thing in scene.things if thing.kind == "number"]
    if not _seen(scene) or not numbers:
        return None
    return DrawnTurn("colour", fill(rng, "colour", "number"), numbers[0].colour, numbers[0].name)


def _shape(rng: random.Random, scene: Scene) -> DrawnTurn | None:
    names = _names(scene)
    if not _seen(scene) or len(names) != 1 or len(scene.things) != 1 or names[0] not in words.SHAPES:
        return None
    return DrawnTurn("shape", fill(rng, "shape"), names[0], names[0])


def _shape_by_colour(rng: random.Random, scene: Scene) -> DrawnTurn | None:
    shapes = [thing for thing in scene.things if thing.kind == "shape"]
    names_by_colour: dict[str, set[str]] = {}
    for thing in shapes:
        names_by_colour.setdefault(thing.colour, set()).add(thing.name)
    colours = [colour for colour, names in names_by_colour.items() if len(names) == 1]
    if not _seen(scene) or not colours or len(shapes) != len(scene.things):
        return None
    colour = rng.choice(colours)
    name = next(iter(names_by_colour[colour]))
    return DrawnTurn("shape", fill(rng, "shape_by_colour", colour=colour), name, name)


def _count(rng: random.Random, scene: Scene) -> DrawnTurn | None:
    if not _seen(scene):
        return None
    name = _some_name(rng, scene) if rng.random() < 0.88 else _absent(rng, scene)
    if name is None:
        return None
    things = [thing for thing in scene.things if thing.name == name]
    if len(things) == 1 and rng.random() < 0.6:  # most names stand alone: counting must not pay off as guessing
        return None
    if things and things[0].kind == "shape" and rng.random() < 0.15:
        colour = things[0].colour
        count = sum(thing.colour == colour for thing in things)
        return DrawnTurn("count", fill(rng, "count", f"{colour} {name}"), str(count), name)
    return DrawnTurn("count", fill(rng, "count", name), str(len(things)), name)


def _count_all(rng: random.Random, scene: Scene) -> DrawnTurn | None:
    if not _seen(scene) or any(thing.kind != "shape" for thing in scene.things) or not scene.things:
        return None
    return DrawnTurn("count", fill(rng, "count_all"), str(len(scene.things)))


def _position(rng: random.Random, scene: Scene) -> DrawnTurn | None:
    alone = [t for t in scene.things if sum(t.name == other.name for other in scene.things) == 1 and t.place]
    if not _seen(scene) or not alone:
        return None
    thing = rng.choice(alone)
    name = "number" if thing.kind == "number" else thing.name
    return DrawnTurn("position", fill(rng, "position", name), thing.place, thing.name)


def _at_place(rng: random.Random, scene: Scene) -> DrawnTurn | None:
    placed = {thing.place: thing for thing in scene.things}
    if not _seen(scene) or len(scene.things) < 2 or "" in placed or len(placed) != len(scene.things):
        return None
    place, thing = rng.choice(list(placed.items()))
    where = {"left": "on the left", "right": "on the right", "center": "in the center"}.get(place, f"at the {place}")
    return DrawnTurn("position", fill(rng, "at_place", place=where), group_phrase([thing]), thing.name)


def _exists(rng: random.Random, scene: Scene) -> DrawnTurn | None:
    if not _seen(scene):
        return None
    present = _some_name(rng, scene)
    if rng.random() < 0.12:
        shown = any(thing.kind == "number" for thing in scene.things)
        return DrawnTurn("exists", fill(rng, "exists", "number"), YES if shown else NO)
    if present and rng.random() < 0.5:
        thing = next(thing for thing in scene.things if thing.name == present)
        name = thing.phrase if rng.random() < 0.4 else thing.name
        return DrawnTurn("exists", fill(rng, "exists", name), YES, present)
    if present and present in words.SHAPES and rng.random() < 0.3:
        colours = {thing.colour for thing in scene.things if thing.name == present}
        colour = rng.choice([colour for colour in words.COLOURS if colour not in colours])
        return DrawnTurn("exists", fill(rng, "exists", f"{colour} {present}"), NO, present)
    return DrawnTurn("exists", fill(rng, "exists", _absent(rng, scene)), NO)


def _name(rng: random.Random, scene: Scene) -> DrawnTurn | None:
    groups = groups_of(scene)
    if not _seen(scene) or not groups:
        return None
    if len(groups) > 1:
        return DrawnTurn("describe", fill(rng, "name_many"), join([group_phrase(group) for group in groups]))
    skill = {"shape": "name", "emoji": "emoji", "number": "reading"}[groups[0][0].kind]
    return DrawnTurn(skill, fill(rng, "name"), group_phrase(groups[0]), groups[0][0].name)


def _reading(rng: random.Random, scene: Scene) -> DrawnTurn | None:
    numbers = [thing for thing in scene.things if thing.kind == "number"]
    if not _seen(scene) or not numbers:
        return None
    return DrawnTurn("reading", fill(rng, "reading"), numbers[0].name, numbers[0].name)


def _describe(rng: random.Random, scene: Scene) -> DrawnTurn:
    return DrawnTurn("describe", fill(rng, "describe"), describe(scene))


def _unanswerable(rng: random.Random, scene: Scene) -> DrawnTurn | None:
    """Of a picture too dark or blurred, anything; of a clear one, what it does not show."""
    if not _seen(scene):
        return _unseen(rng)
    name = _absent(rng, scene)
    options = [fill(rng, "colour", name), fill(rng, "position", name)]
    if not any(thing.kind == "number" for thing in scene.things):
        options += [fill(rng, "reading"), fill(rng, "colour", "number")]
    if not scene.things:
        options += [fill(rng, template) for template in ("name", "shape", "colour_of_it")]
    return DrawnTurn("unanswerable", rng.choice(options), words.UNANSWERABLE)


def _unseen(rng: random.Random) -> DrawnTurn:
    name = rng.choice((*words.SHAPES, *words.EMOJI))
    template = rng.choice(
        ("colour", "colour_of_it", "shape", "count", "position", "exists", "name", "name", "reading", "reading")
    )
    return DrawnTurn("unanswerable", fill(rng, template, name), words.UNANSWERABLE)


_SKILLS: dict[str, Callable[[random.Random, Scene], DrawnTurn | None]] = {
    "colour": _colour,
    "colour_of_it": _colour_of_it,
    "colour_of_number": _colour_of_number,
    "shape": _shape,
    "shape_by_colour": _shape_by_colour,
    "count": _count,
    "count_all": _count_all,
    "position": _position,
    "at_place": _at_place,
    "exists": _exists,
    "name": _name,
    "reading": _reading,
    "describe": _describe,
    "unanswerable": _unanswerable,
}
_SKILL_WEIGHTS = {
    "colour": 3, "colour_of_it": 2, "colour_of_number": 1, "shape": 3, "shape_by_colour": 2, "count": 4,
    "count_all": 1, "position": 3, "at_place": 2, "exists": 2, "name": 4, "reading": 8, "describe": 2,
    "unanswerable": 2,
}  # fmt: skip
