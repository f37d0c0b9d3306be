"""Held-out questions about drawn pictures, by skill: no stage of the demo's training draws these."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from qwen_vqa.train.drawn.conversations import nth_picture, which_picture
from qwen_vqa.train.drawn.drawn_questions import DrawnTurn, ask, follow_up
from qwen_vqa.train.drawn.scenes import Scene, make_scene
from qwen_vqa.train.drawn.sentences import SENTENCES, in_a_sentence
from qwen_vqa.train.drawn.sentences import SKILLS as SENTENCE_SKILLS

LONG_CONVERSATION = 8  # turns
FIRST_SEED = 3_000_000_000  # of pictures that no stage of training draws


@dataclass(frozen=True, slots=True)
class HeldOutCase:
    """Turns about scenes; the last turn is the one that counts."""

    skill: str
    scenes: tuple[Scene, ...]
    turns: tuple[DrawnTurn, ...]
    a_turn: tuple[int, ...] = ()  # pictures that come with each turn; all with the first by default


def cases(skill: str, number: int) -> Iterator[HeldOutCase]:
    """`number` cases of a skill, the same ones every time."""
    seed, found = FIRST_SEED, 0
    while found < number:
        rng = random.Random(f"evaluation {skill} {seed}")
        case = _MAKERS[skill](rng, seed)
        seed += 2
        if case is not None:
            found += 1
            yield case


def _asking(skill: str, *skills: str, kind: str | None = None, held_out: bool = True) -> Callable:
    def make(rng: random.Random, seed: int) -> HeldOutCase | None:
        scene = make_scene(seed, held_out, kind)
        turn = ask(rng, scene, skills)
        return HeldOutCase(skill, (scene,), (turn,)) if turn and turn.skill in (skill, skill.split(",")[0]) else None

    return make


def _reading(digits: int) -> Callable:
    def make(rng: random.Random, seed: int) -> HeldOutCase | None:
        scene = make_scene(seed, True, "number")
        turn = ask(rng, scene, ["reading"])
        return (
            HeldOutCase(f"reading, {digits} digits", (scene,), (turn,)) if turn and len(turn.answer) == digits else None
        )

    return make


def _follow_up(rng: random.Random, seed: int) -> HeldOutCase | None:
    scene = make_scene(seed, True)
    first = ask(rng, scene, ["colour", "shape", "shape_by_colour", "count", "position", "exists", "name"])
    if first is None or first.subject is None:
        return None
    second = follow_up(rng, scene, first.subject)
    return HeldOutCase("follow_up", (scene,), (first, second)) if second else None


def _pictures(rng: random.Random, seed: int) -> HeldOutCase:
    scenes = (make_scene(seed, True), make_scene(seed + 1, True))
    turn = which_picture(rng, list(scenes)) if rng.random() < 0.5 else nth_picture(rng, list(scenes))
    return HeldOutCase("pictures", scenes, (turn,))


def _conversation(rng: random.Random, seed: int) -> HeldOutCase:
    """Eight turns, each with a new picture and the question which number it shows; the last one counts."""
    scenes: list[Scene] = []
    turns: list[DrawnTurn] = []
    while len(scenes) < LONG_CONVERSATION:
        seed += 1_000_000
        scene = make_scene(seed, True, "number")
        if turn := ask(rng, scene, ["reading"]):
            scenes.append(scene)
            turns.append(turn)
    return HeldOutCase("conversation", tuple(scenes), tuple(turns), (1,) * len(scenes))


_MAKERS: dict[str, Callable[[random.Random, int], HeldOutCase | None]] = {
    "colour": _asking("colour", "colour", "colour_of_it", "colour_of_number"),
    "shape": _asking("shape", "shape", "shape_by_colour"),
    "count": _asking("count", "count", "count_all"),
    "position": _asking("position", "position", "at_place"),
    "reading, 1 digits": _reading(1),
    "reading, 2 digits": _reading(2),
    "reading, 3 digits": _reading(3),
    "name": _asking("name", "name"),
    "emoji": _asking("emoji", "name", kind="emoji", held_out=False),
    "emoji, unseen design": _asking("emoji, unseen design", "name", kind="emoji"),
    "exists": _asking("exists", "exists"),
    "unanswerable": _asking("unanswerable", "unanswerable"),
    "describe": _asking("describe", "describe"),
    "follow_up": _follow_up,
    "pictures": _pictures,
    "conversation": _conversation,
}
SKILLS = tuple(_MAKERS)


def adapter_cases(number: int) -> list[HeldOutCase]:
    """`number` questions with the answers that the adapter teaches, the same ones every time."""
    asked: list[HeldOutCase] = []
    seed = FIRST_SEED + 50_000_000
    while len(asked) < number:
        seed += 1
        scene = make_scene(seed, True)
        turn = ask(random.Random(f"adapter {seed}"), scene, SENTENCE_SKILLS)
        turn = in_a_sentence(turn, scene) if turn and turn.skill != "emoji" else None
        if turn:
            asked.append(HeldOutCase(SENTENCES, (scene,), (turn,)))
    return asked
