"""`qwen-vqa ask`: the command, against the session's real server."""

import base64
import os
import pty
import select
import subprocess
import time
from pathlib import Path

import pytest

from qwen_vqa.plugin.command.installed_command import installed_command
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.ask.words import asked
from tests.image_server import ImageServer
from tests.server import Server
from tests.serving.conftest import GuardedServer
from tests.tiny import picture

FLAGS = ("--temperature", "0", "--max-tokens", "8")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A picture's file."""
    file = tmp_path / "photo.png"
    picture(1).save(file)
    return file


def ask(
    server: Server, *words: str | Path, said: bytes | None = None, **variables: str
) -> subprocess.CompletedProcess[bytes]:
    """The command's end, and what it printed."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    environment = {**others, "OPENAI_BASE_URL": server.url, **variables}
    command = installed_command("ask", *FLAGS, *map(str, words))
    feed = {"input": said} if said is not None else {"stdin": subprocess.DEVNULL}
    return subprocess.run(command, capture_output=True, env=environment, check=False, timeout=120, **feed)


def answer(server: Server, *words: str | Path, said: bytes | None = None) -> str:
    done = ask(server, *words, said=said)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr
    return done.stdout.decode()


def expected(server: Server, *messages: str, photo: Path | None = None) -> str:
    """What the SDK gets for one question about a picture, and for what was said before it."""
    url = f"data:image/png;base64,{base64.b64encode(photo.read_bytes()).decode()}" if photo else None
    turns: list = []
    for number, text in enumerate(messages):
        if number % 2:
            turns.append({"role": "assistant", "content": text})
        elif url and not number:
            parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
            turns.append({"role": "user", "content": parts})
        else:
            turns.append({"role": "user", "content": text})
    reply = server.client.chat.completions.create(model="tiny", messages=turns, temperature=0, max_tokens=8)
    return reply.choices[0].message.content


def shown(text: str) -> str:
    """An answer of as many tokens as it may have, without what a terminal would obey."""
    return "".join(letter for letter in text if letter.isprintable() or letter == "\n") + " [cut off: --max-tokens]\n"


def test_the_answer_is_the_sdks(tiny_server: Server, photo: Path):
    printed = answer(tiny_server, "what is this?", photo)
    assert printed == shown(expected(tiny_server, "what is this?", photo=photo))
    assert answer(tiny_server, photo, "what is this?") == printed
    assert answer(tiny_server, "what is this?", "-", said=photo.read_bytes()) == printed
    assert answer(tiny_server, "-", photo, said=b"what is this?\n") == printed
    assert answer(tiny_server, "what is this?", "--url", tiny_server.url.removesuffix("/v1"), photo) == printed
    assert answer(tiny_server, "what is this?") != printed


def test_several_pictures_go_in_their_order(tiny_server: Server, photo: Path, tmp_path: Path):
    picture(2).save(tmp_path / "other.png")
    pictures = photo, tmp_path / "other.png"
    assert answer(tiny_server, "which?", *pictures) != answer(tiny_server, "which?", *reversed(pictures))


def test_a_picture_on_the_web_is_fetched_by_the_server(tiny_server: Server, trusted_images: ImageServer):
    answer(tiny_server, "what is this?", trusted_images.url("/7.png"))
    assert "/7.png" in trusted_images.requests


def test_an_adapter_is_chosen_by_its_name(tiny_server: Server, photo: Path):
    assert answer(tiny_server, "--model", "tiny-lora", "why?", photo) != answer(tiny_server, "why?", photo)


def test_lines_are_questions_that_remember(tiny_server: Server, photo: Path):
    printed = answer(tiny_server, photo, said=b"what?\n\nwhy?\n")
    first = expected(tiny_server, "what?", photo=photo)
    second = expected(tiny_server, "what?", first, "why?", photo=photo)
    assert second != expected(tiny_server, "why?")
    assert printed == shown(first) + shown(second)


def test_in_a_terminal_a_mistake_does_not_end_the_conversation(tiny_server: Server, photo: Path):
    leader, follower = pty.openpty()
    command = [*installed_command("ask", *FLAGS), "--url", tiny_server.url]
    process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower)
    os.close(follower)
    try:
        assert b"tiny" in until(leader, b"> ")
        os.write(leader, b"/picture /no/such.png\n")
        assert b"/no/such.png cannot be read" in until(leader, b"> ")
        os.write(leader, f"/picture {photo}\n".encode())
        until(leader, b"> ")
        os.write(leader, b"what?\n")
        printed = until(leader, b"> ").decode().replace("\r\n", "\n")
        assert shown(expected(tiny_server, "what?", photo=photo)) in printed
        os.write(leader, b"\x04")  # Ctrl-D
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(leader)


def until(terminal: int, prompt: bytes, seconds: float = 60) -> bytes:
    """What a terminal shows until it ends so, and is quiet."""
    seen, deadline = b"", time.monotonic() + seconds
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.3)[0]:
            seen += os.read(terminal, 65536)
        elif seen.endswith(prompt):
            return seen
    raise AssertionError(seen)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["what?", "photo.pngg.png"], "photo.pngg.png"),
        (["what?", "why?"], "'why?'"),
        (["what?", "-", "-"], "standard input"),
        (["what?", "--url", "localhost:8000/v1"], "http://localhost:8000/v1"),
        (["what?", "--url", "http://localhost:99999/v1"], "99999"),
        (["what?", "--url", "http://127.0.0.1:9/v1"], "no server responds at http://127.0.0.1:9/v1"),
        (["what?", "--model", "no-such"], "no-such"),
        (["what?", "--max-tokens", "0"], "--max-tokens"),
        (["what?", __file__], "is not a picture"),
        (["what?" + "\udcff"], "UTF-8"),
    ],
)
def test_what_is_wrong_is_one_line(tiny_server: Server, words: list[str], named: str):
    done = ask(tiny_server, *words)
    [line] = done.stderr.decode("utf-8", "replace").splitlines()
    assert (done.returncode, done.stdout) == (2, b"")
    assert line.startswith("qwen-vqa: ")
    assert named in line


def test_the_key_is_the_sdks_variable_or_the_flag(guarded_server: GuardedServer):
    refused = ask(guarded_server, "why?")
    assert refused.returncode == 2
    assert b"401" in refused.stderr
    assert b"OPENAI_API_KEY" in refused.stderr
    assert ask(guarded_server, "why?", OPENAI_API_KEY=guarded_server.keys["alice"]).returncode == 0
    assert ask(guarded_server, "why?", "--api-key", guarded_server.keys["alice"]).returncode == 0


def test_a_question_may_have_the_length_of_no_file_name():
    text = "x" * 5000 + "?"
    assert asked([text], bytes).question == text
    with pytest.raises(UserError, match=r"there is no picture cat\.png"):
        asked(["cat.png"], bytes)
