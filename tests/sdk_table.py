"""The table in serving/README.md of what OpenAI's SDKs find here, made from the tests that hold it.

python -m tests.sdk_table    writes it into serving/README.md
"""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from tests.tiny import REPOSITORY

README = REPOSITORY / "serving" / "README.md"
NODE_FEATURES = REPOSITORY / "tests" / "node" / "features.mjs"
BEGIN, END = "<!-- tests.sdk_table -->\n", "<!-- /tests.sdk_table -->\n"


@dataclass(frozen=True)
class Feature:
    """A row: an API, what is asked of it, and what comes."""

    api: str
    name: str
    answer: str


FEATURES: list[Feature] = []


def feature(api: str, name: str, answer: str = "yes") -> Callable:
    """Marks the test that shows it, through OpenAI's Python SDK."""

    def mark(test: Callable) -> Callable:
        FEATURES.append(Feature(api, name, answer))
        return test

    return mark


def node_features() -> list[tuple[str, str]]:
    """What tests/node/features.mjs shows through OpenAI's Node SDK: API and name."""
    found = re.findall(r'^  "([^":]+): ([^"]+)": async', NODE_FEATURES.read_text(encoding="utf-8"), re.MULTILINE)
    return [(api, name) for api, name in found]


def table() -> str:
    """All rows, in the tests' order."""
    import_module("tests.serving.test_sdk")
    in_node = node_features()
    lines = ["| API | | Python SDK | Node SDK |", "|---|---|---|---|"]
    for row in FEATURES:
        node = row.answer if (row.api, row.name) in in_node else ""
        lines.append(f"| {row.api} | {row.name} | {row.answer} | {node} |")
    return "\n".join(lines) + "\n"


def table_of(readme: str) -> str:
    """The table as a README has it."""
    return readme.partition(BEGIN)[2].partition(END)[0]


def main() -> int:
    """Write the table into the README."""
    readme = README.read_text(encoding="utf-8")
    if BEGIN not in readme or END not in readme:
        print(f"README.md has no place for it, between {BEGIN.strip()} and {END.strip()}", file=sys.stderr)
        return 2
    before, after = readme.partition(BEGIN)[0], readme.partition(END)[2]
    README.write_text(before + BEGIN + table() + END + after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    # As the tests import it, so that they mark into the same list.
    sys.exit(import_module("tests.sdk_table").main())
