"""What was read, kept and dropped, as a table for the terminal."""

from collections.abc import Sequence

from qwen_vqa.train.data.mixing import SHOWN, Tally

_HEADER = ("data set", "read", "checked", "dropped", "shortened", "kept", "samples")


def data_table(tallies: Sequence[Tally]) -> str:
    """A line a data set, and below it one for each reason to drop, with the first names."""
    total = sum(tally.used for tally in tallies)
    lines = [_line(*_HEADER, "share")]
    for tally in tallies:
        numbers = (tally.read, tally.checked, tally.checked - tally.kept, tally.shortened, tally.kept, tally.used)
        lines.append(_line(tally.name, *(f"{number:,}" for number in numbers), f"{tally.used / max(1, total):.0%}"))
        for fault, count in tally.dropped.items():
            more = ", ..." if count > SHOWN else ""
            lines.append(f"  dropped {count:,}: {fault}: {', '.join(tally.examples[fault])}{more}")
    return "\n".join(lines)


def _line(name: str, *cells: str) -> str:
    return f"{name:<10}" + "".join(f"{cell:>11}" for cell in cells)
