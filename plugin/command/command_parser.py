"""A command line's parser: what is wrong is one line, with the flag or word that was probably meant."""

import argparse
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from typing import NoReturn

BAD_INPUT = 2  # the exit status
MOST_SEED = 2**32 - 1  # NumPy's, which takes fewer than PyTorch


class CommandParser(argparse.ArgumentParser):
    """argparse's parser, whose errors come without the usage, which is long, and with a suggestion."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def] # as argparse has it
        """As argparse does; an error looks at all that was given."""
        self._given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print one line and end the program."""
        command = self.prog.removeprefix("qwen-vqa").strip()
        place = f"{command}: " if command else ""
        said = mistake(self, message, self._given)
        self.exit(BAD_INPUT, f"qwen-vqa: {place}{said} `{self.prog} --help` lists what there is.\n")


def seed_number(text: str) -> int:
    """A flag's type: what PyTorch, NumPy and Python all take as a seed.

    Raises:
        argparse.ArgumentTypeError: another.
    """
    if text.isdecimal() and int(text) <= MOST_SEED:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text} is no seed: give a whole number from 0 to {MOST_SEED}")


def mistake(parser: argparse.ArgumentParser, message: str, given: Iterable[str]) -> str:
    """An error of argparse as a sentence, with the flags that are most like the unknown ones among those given."""
    flags = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
    named = [word.partition("=")[0] for word in given if word.startswith("--")]
    unknown = [name for name in named if not any(flag.startswith(name) for flag in flags)]
    meant = dict.fromkeys(like for name in unknown for like in similar(name, flags))
    return f"{message.rstrip('.')}.{question(meant)}"


def similar(word: str, known: Iterable[str]) -> list[str]:
    """The known word that is most like this one, or none; a flag also by what it ends with: --lora-rank is --rank."""
    known = list(known)
    ends = [other for other in known if other.startswith("--") and word.endswith(other.removeprefix("-"))]
    return get_close_matches(word, known, n=1) or ends[:1]


def question(meant: Iterable[str]) -> str:
    """Whether these were meant, to be put behind a sentence; nothing for none."""
    listed = ", ".join(meant)
    return f" Did you mean {listed}?" if listed else ""
