"""What the demo's world is made of, and how people ask about it: names, colours, question templates."""

SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring")

# Names of emoji that every design draws alike; the key is the Unicode code point.
EMOJI = {
    "cat": "1f431", "dog": "1f436", "fish": "1f41f", "bird": "1f426", "car": "1f697", "bus": "1f68c",
    "tree": "1f333", "flower": "1f33b", "apple": "1f34e", "banana": "1f34c", "sun": "2600-fe0f", "house": "1f3e0",
    "phone": "1f4f1", "book": "1f4d5", "key": "1f511", "umbrella": "2614", "pizza": "1f355", "cake": "1f382",
    "guitar": "1f3b8", "bicycle": "1f6b2", "airplane": "2708-fe0f", "boat": "26f5", "rocket": "1f680", "shoe": "1f45f",
    "hat": "1f3a9", "scissors": "2702-fe0f", "camera": "1f4f7", "bell": "1f514", "balloon": "1f388",
    "mushroom": "1f344", "carrot": "1f955", "egg": "1f95a", "lemon": "1f34b", "strawberry": "1f353",
    "grapes": "1f347", "horse": "1f434", "pig": "1f437", "frog": "1f438", "penguin": "1f427",
    "butterfly": "1f98b",
}  # fmt: skip

# RGB values a colour is drawn around.
COLOURS = {
    "red": (220, 30, 35),
    "orange": (250, 140, 20),
    "yellow": (250, 225, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "purple": (130, 50, 170),
    "pink": (250, 130, 185),
    "brown": (120, 75, 40),
    "black": (20, 20, 22),
    "white": (248, 248, 248),
}

PLACES = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)

COUNT_WORDS = ("no", "one", "two", "three", "four", "five", "six")
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
UNANSWERABLE = "unanswerable"

# {thing} is a noun in the singular, {things} in the plural, {a_thing} with its article.
QUESTIONS = {
    "colour": (
        "What color is the {thing}?",
        "What colour is the {thing}?",
        "Which color is the {thing}?",
        "Which colour does the {thing} have?",
        "What is the color of the {thing}?",
        "What's the colour of the {thing}?",
        "Tell me the color of the {thing}.",
        "Color of the {thing}?",
        "The {thing} is what color?",
    ),
    "colour_plural": (
        "What color are the {things}?",
        "What colour are the {things}?",
        "Which color are the {things}?",
        "What is the color of the {things}?",
    ),
    "shape": (
        "What shape is this?",
        "What shape is it?",
        "Which shape is this?",
        "What shape do you see?",
        "Which shape is shown?",
        "What shape is in the picture?",
        "What shape is in the image?",
        "Name the shape.",
    ),
    "shape_by_colour": (
        "What shape is {colour}?",
        "Which shape is {colour}?",
        "What is the {colour} shape?",
        "What is {colour}?",
        "Which thing is {colour}?",
    ),
    "count": (
        "How many {things} are there?",
        "How many {things} do you see?",
        "How many {things} are in the picture?",
        "How many {things} are in the image?",
        "How many {things}?",
        "Count the {things}.",
        "What is the number of {things}?",
        "How many {things} can you see?",
    ),
    "count_all": (
        "How many objects are there?",
        "How many things are in the picture?",
        "How many shapes are there?",
        "Count the objects.",
        "How many things do you see?",
    ),
    "position": (
        "Where is the {thing}?",
        "Where in the picture is the {thing}?",
        "Where do you see the {thing}?",
        "In which part of the picture is the {thing}?",
        "What is the position of the {thing}?",
    ),
    "at_place": (
        "What is {place}?",
        "What do you see {place}?",
        "What thing is {place}?",
        "Which object is {place}?",
    ),
    "exists": (
        "Is there {a_thing}?",
        "Is there {a_thing} in the picture?",
        "Is there {a_thing} in the image?",
        "Do you see {a_thing}?",
        "Can you see {a_thing}?",
        "Does the picture show {a_thing}?",
    ),
    "name": (
        "What is this?",
        "What is it?",
        "What's this?",
        "What do you see?",
        "What object is this?",
        "What thing is this?",
        "What is in the picture?",
        "What is in the image?",
        "What is shown here?",
        "Name the thing.",
        "Can you tell me what this is?",
        "Please tell me what this is.",
    ),
    "name_many": (
        "What do you see?",
        "What can you see?",
        "What is in the picture?",
        "What is in the image?",
        "What is shown here?",
        "What are these?",
    ),
    "colour_of_it": (
        "What color is it?",
        "What colour is it?",
        "What color is this?",
        "What colour is this?",
        "Which color is it?",
        "What is its color?",
        "What color is this thing?",
        "Can you tell me what color this is?",
    ),
    "reading": (
        "What number is this?",
        "What number is written?",
        "What number is it?",
        "What number is shown?",
        "What number do you see?",
        "What number is in the picture?",
        "What number is written here?",
        "Which number is this?",
        "Which number do you see?",
        "Read the number.",
        "Read the number, please.",
        "What does it say?",
        "What is written here?",
        "What is the number?",
        "Can you read the number?",
        "Please read the number to me.",
        "What is the number in the image?",
    ),
    "describe": (
        "Describe the picture.",
        "Describe the image.",
        "Describe this image.",
        "Describe this picture.",
        "What is in this picture?",
        "What is in this image?",
        "What can you see in the picture?",
        "What do you see in this image?",
        "Please describe the image.",
        "Tell me about the picture.",
        "Describe what you see.",
        "Describe it.",
    ),
    "which_picture": (
        "Which picture has {a_thing}?",
        "Which image has {a_thing}?",
        "Which picture shows {a_thing}?",
        "Which image shows {a_thing}?",
        "In which picture is the {thing}?",
    ),
    "nth_picture": (
        "What is in the {nth} picture?",
        "What is in the {nth} image?",
        "Describe the {nth} picture.",
        "Describe the {nth} image.",
        "What does the {nth} picture show?",
    ),
    "follow_count": (
        "And how many are there?",
        "How many are there?",
        "How many of them are there?",
        "How many?",
    ),
    "follow_colour": (
        "What color is it?",
        "What colour is it?",
        "And what color is it?",
        "And its color?",
        "Which color does it have?",
    ),
    "follow_colour_plural": ("What color are they?", "What colour are they?", "And what color are they?"),
    "follow_position": ("Where is it?", "And where is it?", "Where in the picture is it?"),
    "follow_shape": ("What shape is it?", "And what shape is it?"),
}

ANSWERS = (
    "There is {a_thing} in the picture.",
    "There are {number} {things} in the picture.",
    "The number {number} is written in the picture.",
    "The picture shows {a_thing} and {a_thing}.",
    "the first",
    "the second",
    "yes",
    "no",
    "It is {colour}.",
    "The picture is too dark.",
    "The picture is too blurred.",
    UNANSWERABLE,
)


def plural(noun: str) -> str:
    """The plural of a name in this world."""
    irregular = {"fish": "fish", "grapes": "grapes", "scissors": "scissors", "strawberry": "strawberries"}
    irregular |= {"butterfly": "butterflies"}
    if noun in irregular:
        return irregular[noun]
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def with_article(phrase: str) -> str:
    """'an apple', 'a red circle'; names that are plural already stay bare."""
    if phrase.split()[-1] in ("grapes", "scissors"):
        return phrase
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase
