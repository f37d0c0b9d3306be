"""How text of others stands in Streamlit's Markdown, and small words."""

import re


def plain(text: str) -> str:
    """Shown as it stands: no character of it means anything to Markdown."""
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|<>~$:])", r"\\\1", text)


def answer(text: str) -> str:
    """A model's Markdown, without formulas, so that prices stay prices, and without images from elsewhere.

    An image would be fetched as soon as it is shown, and its address could carry off what was said.
    """
    return text.replace("$", r"\$").replace("![", "!\u200b[")


def count(number: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
