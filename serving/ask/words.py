"""What stands on the command line of `qwen-vqa ask`: which word is the question, and which are pictures."""

import mimetypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.images.message_parts import data_url

STANDARD_INPUT = "-"
# Python's table lacks what phones and browsers write.
_MEDIA_TYPES = {".heic": "image/heic", ".heif": "image/heif", ".avif": "image/avif", ".webp": "image/webp"}


@dataclass(frozen=True)
class Asked:
    """A question, if there is one, and the addresses of its pictures: on the web, or data URLs."""

    question: str | None = None
    pictures: tuple[str, ...] = ()

    def with_question(self, question: str) -> "Asked":
        """The same pictures with a question.

        Raises:
            UserError: it is not text.
        """
        try:
            question.encode()
        except UnicodeEncodeError as error:  # bytes that are no UTF-8, as Python hands them on
            raise UserError(f"the question is not text in UTF-8 at character {error.start + 1}.") from error
        return replace(self, question=question)

    def with_picture(self, word: str) -> "Asked":
        """One picture more: a file, or an address on the web.

        Raises:
            UserError: there is no such file, or it is not a picture.
        """
        if _is_web(word):
            return replace(self, pictures=(*self.pictures, word))
        path = Path(word).expanduser()
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"the picture {word} cannot be read: {error.strerror}.") from error
        return self._with_bytes(data, word)

    def _with_bytes(self, data: bytes, name: str) -> "Asked":
        from qwen_vqa.plugin.images.image_loader import ACCEPTED, HEAD, looks_like_image

        if not looks_like_image(data[:HEAD]):
            raise UserError(f"{name} is not a picture that the server takes: {ACCEPTED}.")
        suffix = Path(name).suffix.lower()
        media_type = _MEDIA_TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "image/png"
        url = data_url(data, media_type)
        return replace(self, pictures=(*self.pictures, url))

    def with_standard_input(self, data: bytes) -> "Asked":
        """Standard input, as what it is: a picture, or else the question."""
        from qwen_vqa.plugin.images.image_loader import HEAD, looks_like_image

        if looks_like_image(data[:HEAD]):
            return self._with_bytes(data, "standard input")
        if self.question is not None:
            raise UserError("standard input is not a picture, and there is a question already.")
        return self.with_question(data.decode("utf-8", "surrogateescape").strip())


def asked(words: Sequence[str], standard_input: Callable[[], bytes]) -> Asked:
    """The question and the pictures among the words, pictures in their order.

    A word is a picture if it is an address on the web or there is a file of that name; what is none of these is the
    question.

    Raises:
        UserError: two questions, a picture that cannot be read, or standard input named twice.
    """
    if words.count(STANDARD_INPUT) > 1:
        raise UserError("standard input, -, can be read once.")
    made = Asked()
    for word in words:
        if word == STANDARD_INPUT:
            made = made.with_standard_input(standard_input())
        elif _is_web(word) or _is_file(word):
            made = made.with_picture(word)
        elif _looks_like_a_file(word):
            raise UserError(f"there is no picture {word}.")
        elif made.question is not None:
            raise UserError(
                f"two questions, {made.question!r} and {word!r}: put one in quotes. A picture's file has to be there."
            )
        else:
            made = made.with_question(word)
    return made


def _is_web(word: str) -> bool:
    return word.lower().startswith(("http://", "https://"))


def _is_file(word: str) -> bool:
    try:
        return Path(word).expanduser().is_file()
    except (OSError, ValueError):  # a question that is too long for a file's name
        return False


def _looks_like_a_file(word: str) -> bool:
    """A name of a picture, for which a question is hardly meant."""
    suffix = Path(word).suffix.lower()
    kind = mimetypes.guess_type(word)[0] or ""
    return " " not in word and (suffix in _MEDIA_TYPES or kind.startswith("image/"))
