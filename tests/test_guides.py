"""The guides: their links lead somewhere, and their commands have flags that there are."""

import ast
import re
import shlex
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen_vqa.benchmarks.quantisation.quantize_flags import parser as quantize_parser
from qwen_vqa.benchmarks.quantisation.quantize_flags import report_parser
from qwen_vqa.serving.ask.ask import build_parser as ask_flags
from qwen_vqa.serving.cli import job_parser
from qwen_vqa.serving.jobs import JOBS
from tests.tiny import REPOSITORY

FOLDERS = ("plugin", "train", "serving", "quantize", "benchmarks", "tests")
GUIDES = sorted(
    guide
    for guide in [*REPOSITORY.glob("*.md"), *(one for folder in FOLDERS for one in (REPOSITORY / folder).rglob("*.md"))]
    if "node_modules" not in guide.parts  # npm's, which the Node tests install
)


def named(guide: Path) -> str:
    return str(guide.relative_to(REPOSITORY))


def anchors(guide: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", guide.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(guide: Path) -> Iterator[list[str]]:
    """Words of the `qwen-vqa` commands in its blocks of shell, without comments, and without those that leave out."""
    for block in re.findall(r"```sh\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.rpartition("| ")[2], comments=True)
            if words[:1] == ["qwen-vqa"] and "..." not in line:
                yield words[1:]


COMMANDS = [(named(guide), words) for guide in GUIDES for words in commands(guide)]


def parser_of(job: str, words: list[str]) -> ArgumentParser:
    if job == "serve":
        from qwen_vqa.serving.serve import server_parser

        return server_parser()
    if job == "quantize":
        return report_parser() if words[:1] == ["report"] else quantize_parser()
    if job == "ask":
        return ask_flags(ArgumentParser())
    return job_parser(job)


@pytest.mark.parametrize("guide", GUIDES, ids=named)
def test_links_lead_somewhere(guide: Path):
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", guide.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        if link.startswith(("http://", "https://")):
            continue
        target = guide.parent / path if path else guide
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            lost.append(link)
    assert lost == []


@pytest.mark.parametrize(
    ("guide", "words"), COMMANDS, ids=lambda value: (value if isinstance(value, str) else " ".join(value))[:60]
)
def test_commands_have_flags_that_there_are(guide: str, words: list[str]):
    job, *rest = words
    assert job in JOBS
    parser = parser_of(job, rest)
    rest = rest[1:] if rest[:1] == ["report"] else rest
    args = parser.parse_intermixed_args(rest) if job == "ask" else parser.parse_args(rest)
    assert args is not None


def test_there_are_commands_of_every_job_that_users_run():
    assert {words[0] for _, words in COMMANDS} >= set(JOBS) - {"doctor", "demo-train", "demo-adapter"}


def test_the_first_page_is_short():
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) < 180


def printed_texts() -> list[str]:
    """Every text in the sources, "…" where values are put in; of files without strings of Python, the lines."""
    texts = [(REPOSITORY / "Makefile").read_text(encoding="utf-8")]
    for folder in ("plugin", "train", "serving", "quantize", "benchmarks"):
        for file in (REPOSITORY / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = (str(one.value) if isinstance(one, ast.Constant) else "…" for one in node.values)
                    texts.append("".join(parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return texts


def test_troubleshooting_quotes_messages_that_are_printed():
    lines = (REPOSITORY / "serving/TROUBLESHOOTING.md").read_text(encoding="utf-8").splitlines()
    symptoms = [line.split(" | ")[0] for line in lines if line.startswith("| ")]
    quoted = [text for symptom in symptoms for text in re.findall(r'"([^"]+)"', symptom)]
    printed = "\n".join(printed_texts())
    lost = [text for text in quoted if not re.search(".*?".join(map(re.escape, text.split("…"))), printed)]
    assert lost == []
    assert len(quoted) > 15


def test_troubleshooting_names_flags_that_there_are():
    text = (REPOSITORY / "serving/TROUBLESHOOTING.md").read_text(encoding="utf-8")
    from qwen_vqa.serving.serve import server_parser

    parsers = [server_parser(), quantize_parser(), *(job_parser(job) for job in ("train", "evaluate"))]
    known = {flag for parser in parsers for action in parser._actions for flag in action.option_strings}
    others = {"--gpus", "--shm-size"}  # docker's
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text)) - known - others == set()
