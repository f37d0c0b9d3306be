"""The bundled adapter's skill: the same questions, answered in German. The base model knows no German."""

import random
from dataclasses import replace

from qwen_vqa.train.demo import words
from qwen_vqa.train.demo.conversations import Conversation, messages_of
from qwen_vqa.train.demo.questions import NO, YES, Turn, ask
from qwen_vqa.train.demo.scenes import Scene

SKILLS = ("colour", "colour_of_it", "shape", "shape_by_colour", "count", "position", "exists", "name", "reading",
          "unanswerable")  # fmt: skip
COLOURS = dict(
    zip(
        words.COLOURS,
        ("rot", "orange", "gelb", "grün", "blau", "lila", "rosa", "braun", "schwarz", "weiß"),
        strict=True,
    )
)
UNDECLINED = ("lila", "rosa", "orange")
NOUNS = {  # name -> noun and its article's ending
    "circle": "Kreis", "square": "Quadrat", "triangle": "Dreieck", "star": "Stern", "heart": "Herz",
    "diamond": "eine Raute", "cross": "Kreuz", "ring": "Ring", "cat": "eine Katze", "dog": "Hund",
    "fish": "Fisch", "bird": "Vogel", "car": "Auto", "bus": "Bus", "tree": "Baum", "flower": "eine Blume",
    "apple": "Apfel", "banana": "eine Banane", "sun": "eine Sonne", "house": "Haus", "phone": "Telefon",
    "book": "Buch", "key": "Schlüssel", "umbrella": "Regenschirm", "pizza": "eine Pizza", "cake": "Kuchen",
    "guitar": "eine Gitarre", "bicycle": "Fahrrad", "airplane": "Flugzeug", "boat": "Boot",
    "rocket": "eine Rakete", "shoe": "Schuh", "hat": "Hut", "scissors": "eine Schere", "camera": "eine Kamera",
    "bell": "eine Glocke", "balloon": "Ballon", "mushroom": "Pilz", "carrot": "eine Karotte", "egg": "Ei",
    "lemon": "eine Zitrone", "strawberry": "eine Erdbeere", "grapes": "Trauben", "horse": "Pferd",
    "pig": "Schwein", "frog": "Frosch", "penguin": "Pinguin", "butterfly": "Schmetterling",
}  # fmt: skip
NEUTERS = frozenset(
    [
        "Quadrat",
        "Dreieck",
        "Herz",
        "Kreuz",
        "Auto",
        "Haus",
        "Telefon",
        "Buch",
        "Fahrrad",
        "Flugzeug",
        "Boot",
        "Ei",
        "Pferd",
        "Schwein",
    ]
)
PLACES = dict(
    zip(
        [place for row in words.PLACES for place in row],
        ("oben links", "oben", "oben rechts", "links", "Mitte", "rechts", "unten links", "unten", "unten rechts"),
        strict=True,
    )
)
NUMBERS = ("null", "eins", "zwei", "drei", "vier", "fünf", "sechs")
FIXED = {YES: "ja", NO: "nein", words.UNANSWERABLE: "nicht erkennbar"}


def in_german(turn: Turn) -> Turn | None:
    """The turn with its answer in German; None for an answer this file has no words for."""
    answer = turn.answer
    if answer in FIXED:
        return replace(turn, answer=FIXED[answer])
    if turn.skill == "count":
        return replace(turn, answer=NUMBERS[int(answer)])
    if turn.skill == "reading":
        return turn if answer.isdecimal() else replace(turn, answer=f"die Zahl {answer.split()[-1]}")
    if answer in COLOURS or answer in PLACES:
        return replace(turn, answer=COLOURS.get(answer) or PLACES[answer])
    if answer in NOUNS:
        return replace(turn, answer=NOUNS[answer].removeprefix("eine "))
    *adjective, name = answer.removeprefix("an ").removeprefix("a ").split()
    if name not in NOUNS or len(adjective) > 1 or (adjective and adjective[0] not in COLOURS):
        return None
    return replace(turn, answer=noun_phrase(name, COLOURS[adjective[0]] if adjective else ""))


def noun_phrase(name: str, colour: str = "") -> str:
    """'ein roter Kreis', 'eine Katze', 'Trauben'."""
    noun = NOUNS[name].removeprefix("eine ")
    if name == "grapes":
        return noun
    feminine, neuter = NOUNS[name].startswith("eine "), noun in NEUTERS
    ending = "e" if feminine else "es" if neuter else "er"
    declined = colour if not colour or colour in UNDECLINED else colour + ending
    return " ".join(part for part in ("eine" if feminine else "ein", declined, noun) if part)


def make_german_conversation(rng: random.Random, scenes: list[Scene]) -> Conversation:
    """Two or three questions about the first of `scenes`."""
    turns: list[Turn] = []
    for _ in range(rng.choice((2, 3))):
        turn = ask(rng, scenes[0], SKILLS)
        turn = turn and in_german(turn)
        if turn:
            turns.append(turn)
    turns = turns or [Turn("small_talk", "Hello!", "Hallo!")]
    return Conversation(messages_of(rng, turns, 1), (0,), tuple(turns))
