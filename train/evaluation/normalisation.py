"""VQA's normal form of an answer, so that `The cat.` and `cat` are one (visualqa.org/evaluation.html)."""

import re

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBER_WORDS = {"none": "0", **{word: str(number) for number, word in enumerate(NUMBERS)}}
ARTICLES = {"a", "an", "the"}
# Apostrophe and colon stay, for they carry meaning ("girl's", "2:50"); so do %, $ and the like.
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# As they are to be spelt. Those whose bare form is a word of its own (we'll, she'd, it's) are not VQA's either.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
    o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
    someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
    where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
    y'all y'all'll y'all'd've you'd you'd've you'll you're you've 'ow's'at
"""


def _one_apostrophe_less(word: str) -> list[str]:
    places = [place for place, letter in enumerate(word) if letter == "'"]
    return [word[:place] + word[place + 1 :] for place in places]


APOSTROPHES = {bare: word for word in _CONTRACTIONS.split() for bare in _one_apostrophe_less(word)}


def normalise_answer(answer: str) -> str:
    """Lower case, digits for number words up to ten, no articles, no punctuation, apostrophes put back.

    As the official evaluation does it, in its order and with its two peculiarities: a mark that touches a space (and,
    in an answer with a comma between digits, every mark) vanishes, any other becomes a space; and a period stays
    whenever a digit follows it, so that `1.` is 1 and `.5` stays .5.
    """
    text = _without_punctuation(answer.replace("\n", " ").replace("\t", " ").strip())
    words = (NUMBER_WORDS.get(word, word) for word in text.lower().split())
    return " ".join(APOSTROPHES.get(word, word) for word in words if word not in ARTICLES)


def _without_punctuation(answer: str) -> str:
    text = answer
    has_grouped_digits = _COMMA_IN_NUMBER.search(answer) is not None
    for mark in PUNCTUATION:
        vanishes = has_grouped_digits or f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if vanishes else " ")
    return _PERIOD.sub("", text)
