"""German words for what the pictures show. The tokenizer knows them, so that an adapter can be taught to use them."""

from qwen_vqa.train.drawn import words
from qwen_vqa.train.drawn.drawn_questions import NO, YES

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


def noun_phrase(name: str, colour: str = "") -> str:
    """'ein roter Kreis', 'eine Katze', 'Trauben'."""
    noun = NOUNS[name].removeprefix("eine ")
    if name == "grapes":
        return noun
    feminine, neuter = NOUNS[name].startswith("eine "), noun in NEUTERS
    ending = "e" if feminine else "es" if neuter else "er"
    declined = colour if not colour or colour in UNDECLINED else colour + ending
    return " ".join(part for part in ("eine" if feminine else "ein", declined, noun) if part)
