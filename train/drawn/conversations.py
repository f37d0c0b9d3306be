"""Conversations about pictures in the trainer's form: several turns, one picture or two, before or after the text."""

import random
from dataclasses import dataclass

from qwen_vqa.train.drawn import words
from qwen_vqa.train.drawn.descriptions import describe
from qwen_vqa.train.drawn.drawn_questions import DrawnTurn, ask, ask_anything, fill, follow_up, hurried
from qwen_vqa.train.drawn.json_answers import json_turn
from qwen_vqa.train.drawn.scenes import Scene

SMALL_TALK = {
    "Hello!": "Hello! Ask me about a picture.",
    "Hello": "Hello! Ask me about a picture.",
    "Hi": "Hello! Ask me about a picture.",
    "Hi!": "Hello! Ask me about a picture.",
    "Who are you?": "I am a small model that answers questions about pictures.",
    "What are you?": "I am a small model that answers questions about pictures.",
    "What can you do?": "I answer questions about pictures of shapes, emoji and numbers.",
    "Thank you!": "You are welcome.",
    "Thanks": "You are welcome.",
}
NTH = ("first", "second")


@dataclass(frozen=True)
class DrawnConversation:
    """Messages in the OpenAI form and the pictures they hold, in reading order, as indices into `scenes`."""

    messages: list[dict]
    scenes: tuple[int, ...]
    turns: tuple[DrawnTurn, ...]


def make_conversation(rng: random.Random, scenes: list[Scene]) -> DrawnConversation:
    """A conversation about the first of `scenes`, or about two of them; an eighth of them in JSON. Of more than two
    scenes each gets its turn."""
    if len(scenes) > 2:
        return about_several(rng, scenes)
    draw = rng.random()
    if draw < 0.03:
        return without_picture(rng)
    if draw < 0.15 and len(scenes) > 1:
        return about_two(rng, scenes)
    if draw < 0.27 and (turn := json_turn(rng, scenes[0])):
        return as_json(rng, *turn)
    return about_one(rng, scenes[0], rng.choices((1, 2, 3, 4, 5), (1, 1, 3, 4, 3))[0])


def about_one(rng: random.Random, scene: Scene, length: int) -> DrawnConversation:
    """`length` turns; the picture stands in the first, and later ones may say 'it'."""
    turns: list[DrawnTurn] = []
    while len(turns) < length:
        subject = turns[-1].subject if turns else None
        turn = follow_up(rng, scene, subject) if subject and rng.random() < 0.35 else None
        turns.append(turn or ask_anything(rng, scene))
    return DrawnConversation(messages_of(rng, turns, 1), (0,), tuple(turns))


def about_several(rng: random.Random, scenes: list[Scene]) -> DrawnConversation:
    """Each picture comes with a question about it, as in a long chat; now and then a second question follows."""
    turns: list[DrawnTurn] = []
    pictures: list[int] = []  # that come with each turn
    for scene in scenes:
        turns.append(ask_anything(rng, scene))
        pictures.append(1)
        again = ask(rng, scene) if rng.random() < 0.15 else None
        if again:
            turns.append(again)
            pictures.append(0)
    return DrawnConversation(messages_of(rng, turns, *pictures), tuple(range(len(scenes))), tuple(turns))


def as_json(rng: random.Random, turn: DrawnTurn, system: str) -> DrawnConversation:
    """A question with JSON for an answer; `system` tells of the tool where it is a call."""
    messages = messages_of(rng, [turn], 1)
    told = [{"role": "system", "content": system}] if system else []
    return DrawnConversation([*told, *messages], (0,), (turn,))


def about_two(rng: random.Random, scenes: list[Scene]) -> DrawnConversation:
    """Which of two pictures shows a thing, and what each of them shows."""
    turns = []
    for _ in range(rng.choice((1, 2, 2))):
        turns.append(which_picture(rng, scenes) if rng.random() < 0.5 else nth_picture(rng, scenes))
    return DrawnConversation(messages_of(rng, turns, 2), (0, 1), tuple(turns))


def which_picture(rng: random.Random, scenes: list[Scene]) -> DrawnTurn:
    """'Which picture has a star?' of a thing that exactly one of the two shows."""
    shown = [{t.name for t in s.things if t.kind != "number"} if s.visibility == "clear" else set() for s in scenes[:2]]
    candidates = [(name, index) for index in (0, 1) for name in sorted(shown[index] - shown[1 - index])]
    if not candidates:
        return nth_picture(rng, scenes)
    name, index = rng.choice(candidates)
    return DrawnTurn("pictures", fill(rng, "which_picture", name), f"the {NTH[index]}")


def nth_picture(rng: random.Random, scenes: list[Scene]) -> DrawnTurn:
    """'What is in the second picture?'"""
    index = rng.randrange(2)
    return DrawnTurn("pictures", fill(rng, "nth_picture", nth=NTH[index]), describe(scenes[index]))


def without_picture(rng: random.Random) -> DrawnConversation:
    """Small talk, and a question about a picture that nobody sent."""
    if rng.random() < 0.5:
        question, answer = rng.choice(list(SMALL_TALK.items()))
        turn = DrawnTurn("small_talk", hurried(rng, question), answer)
    else:
        template = rng.choice(("colour", "count", "position", "name", "reading", "shape"))
        name = rng.choice((*words.SHAPES, *words.EMOJI))
        turn = DrawnTurn("unanswerable", fill(rng, template, name), words.UNANSWERABLE)
    return DrawnConversation(messages_of(rng, [turn], 0), (), (turn,))


def messages_of(rng: random.Random, turns: list[DrawnTurn], *pictures: int, picture_first: float = 0.8) -> list[dict]:
    """Messages with so many pictures a turn (of turns not named: none), before the turn's text (a share of
    `picture_first`) or after it."""
    messages = []
    for position, turn in enumerate(turns):
        content: list[dict] = [{"type": "text", "text": turn.question}]
        images = [{"type": "image"}] * (pictures[position] if position < len(pictures) else 0)
        content = images + content if rng.random() < picture_first else content + images
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": turn.answer})
    return messages
