"""Whole numbers as a flag takes them: 1,2,4..64."""

from qwen_vqa.plugin.errors import UserError


def number_list(text: str, flag: str) -> list[int]:
    """From "1,8,32" or, with a range that goes on by the last factor, "1,2,4..64"; 8..64 alone doubles.

    Raises:
        UserError: no whole numbers above 0, or a range that does not come to its end; the message names the flag.
    """
    found: list[int] = []
    for part in text.split(","):
        first, dots, last = part.partition("..")
        found.append(_whole(first, text, flag))
        if dots:
            found += _rest(found, _whole(last, text, flag), f"{flag} {text!r}")
    return found


def _rest(found: list[int], last: int, where: str) -> list[int]:
    """What follows the numbers so far, up to `last`."""
    start = found[-1]
    factor, rest = divmod(start, found[-2]) if len(found) > 1 else (2, 0)
    if rest or factor < 2:
        raise UserError(
            f"{where}: {start}..{last} goes on by the factor between the numbers before, and from {found[-2]} to "
            f"{start} there is no whole one above 1; write the numbers out."
        )
    more = []
    while start < last:
        start *= factor
        more.append(start)
    if start != last or not more:
        reached = ", ".join(map(str, [found[-1], *more]))
        raise UserError(f"{where}: by a factor of {factor} that is {reached}, which does not end at {last}.")
    return more


def _whole(text: str, whole: str, flag: str) -> int:
    if not text.strip().isascii() or not text.strip().isdigit() or int(text) < 1:
        raise UserError(
            f"{flag} {whole!r}: {text!r} is no whole number above 0; expected for instance 1,8,32 or 1,2,4..64."
        )
    return int(text)
