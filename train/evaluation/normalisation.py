"""Normal forms of an answer, so that `The cat.` and `cat` are one: VQA's (visualqa.org/evaluation.html), and M4C's."""

import re
from collections.abc import Mapping

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
# Its table has one word the other way round.
_M4C_APOSTROPHES = {**APOSTROPHES, "somebody'd": "somebodyd"}
_M4C_PERIODS = 32


def normalise_answer(answer: str) -> str:
    """Lower case, digits for number words up to ten, no articles, no punctuation, apostrophes put back.

    As the official evaluation does it, in its order and with its two peculiarities: a mark that touches a space (and,
    in an answer with a comma between digits, every mark) vanishes, any other becomes a space; and a period stays
    whenever a digit follows it, so that `1.` is 1 and `.5` stays .5.
    """
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    return _in_normal_words(_PERIOD.sub("", _without_marks(text)), APOSTROPHES)


def m4c_normal_form(answer: str) -> str:
    """As the evaluator of M4C (Hu et al. 2020, arXiv:1911.06258) has it, which LLaVA and lmms-eval use for TextVQA.

    It removes commas and question marks and splits off `'s` before all else, so that `1,000-2,000` is 1000 2000 and
    `yes?no` is yesno. Of an answer's periods, the first 32 vanish.
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.replace("\n", " ").replace("\t", " ").strip()
    return _in_normal_words(_PERIOD.sub("", _without_marks(text), count=_M4C_PERIODS), _M4C_APOSTROPHES)


def _in_normal_words(text: str, apostrophes: Mapping[str, str]) -> str:
    words = (NUMBER_WORDS.get(word, word) for word in text.lower().split())
    return " ".join(apostrophes.get(word, word) for word in words if word not in ARTICLES)


def _without_marks(answer: str) -> str:
    text = answer
    has_grouped_digits = _COMMA_IN_NUMBER.search(answer) is not None
    for mark in PUNCTUATION:
        vanishes = has_grouped_digits or f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if vanishes else " ")
    return text
