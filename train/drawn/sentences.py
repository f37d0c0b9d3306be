"""The bundled adapter's skill: every question is answered with a sentence that names the thing.

'What color is the circle?' gets 'There is a red circle.' where the base model says 'red'. The sentences
are made of words the base model knows: an adapter moves the layers, not the frozen token embeddings.
"""

import random
from dataclasses import replace

from qwen_vqa.train.drawn.conversations import DrawnConversation, messages_of
from qwen_vqa.train.drawn.descriptions import group_phrase, groups_of
from qwen_vqa.train.drawn.drawn_questions import DrawnTurn, ask
from qwen_vqa.train.drawn.scenes import Scene

SENTENCES = "sentences"  # the adapter's name
SKILLS = ("colour", "colour_of_it", "colour_of_number", "shape", "shape_by_colour", "name", "reading", "position")


def in_a_sentence(turn: DrawnTurn, scene: Scene) -> DrawnTurn | None:
    """The turn answered with a sentence on its subject; None where several groups share the name."""
    groups = [group for group in groups_of(scene) if group[0].name == turn.subject]
    if len(groups) != 1:
        return None
    start = "There are" if len(groups[0]) > 1 else "There is"
    return replace(turn, answer=f"{start} {group_phrase(groups[0])}.")


def make_sentences_conversation(rng: random.Random, scenes: list[Scene]) -> DrawnConversation:
    """One to three questions about the first of `scenes`, or a greeting where it shows nothing."""
    turns: list[DrawnTurn] = []
    for _ in range(rng.choice((1, 2, 3))):
        turn = ask(rng, scenes[0], SKILLS)
        turn = in_a_sentence(turn, scenes[0]) if turn else None
        if turn:
            turns.append(turn)
    if not turns:
        greeting = DrawnTurn("small_talk", "Hello!", "Hello! Ask me about a picture.")
        return DrawnConversation(messages_of(rng, [greeting], 0), (), (greeting,))
    return DrawnConversation(messages_of(rng, turns, 1), (0,), tuple(turns))
