"""A real `qwen-vqa chat`, and a visitor to its page in a real browser."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Browser, Page, expect

from qwen_vqa.serving.chat.session import LOOK_SECONDS
from tests.server import free_port

CHAT = [sys.executable, "-m", "qwen_vqa.serving.cli", "chat"]
SECONDS = 60_000
expect.set_options(timeout=SECONDS)
# In the visitor's browser: `look()` does at once what the page does every few seconds, and `idle()` waits until nothing
# has run for a moment.
HELPERS = """
const every = window.setInterval;
window.setInterval = (call, ms, ...rest) => {
  if (ms === LOOK_MS) window.look = call;
  return every(call, ms, ...rest);
};
window.pause = ms => new Promise(done => setTimeout(done, ms));
window.idle = async () => {
  for (let quiet = 0; quiet < 4; await pause(10))
    quiet = document.querySelector("[data-test-script-state=notRunning]") ? quiet + 1 : 0;
};
""".replace("LOOK_MS", str(LOOK_SECONDS * 1000))


@contextlib.contextmanager
def chat_page(url: str, log: Path, key: str = "") -> Iterator[str]:
    """`qwen-vqa chat` for this server, the key in its environment; gives the page's address."""
    port = free_port()
    environment = {**os.environ, "VLLM_API_KEY": key}
    with log.open("w") as output:
        command = [*CHAT, "--url", url, "--port", str(port), "--host", "127.0.0.1"]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            deadline = time.monotonic() + 60
            while not _answers(f"http://127.0.0.1:{port}/_stcore/health"):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)
    assert "Traceback" not in log.read_text(), log.read_text()


def _answers(health: str) -> bool:
    try:
        return httpx.get(health).status_code == 200
    except httpx.HTTPError:
        return False


@dataclass
class Chat:
    """A visitor's page, and what a visitor does."""

    page: Page
    long_answers_before: float = 0

    def ask(self, question: str, *files: Path) -> None:
        if files:
            self.page.locator("[data-testid=stChatInput] input[type=file]").first.set_input_files(list(files))
            for file in files:
                expect(self.page.get_by_test_id("stChatInput").get_by_text(file.name)).to_be_visible()
        self.page.get_by_test_id("stChatInputTextArea").fill(question)
        # Not Enter, which does nothing while a file is still on its way: the button is there once it has arrived.
        self.page.get_by_test_id("stChatInputSubmitButton").click()

    def attach_url(self, url: str) -> None:
        self.page.get_by_role("button", name="Picture from the web").click()
        box = self.page.get_by_role("textbox", name="Address of an image on the web")
        box.fill(url)
        box.press("Enter")

    def look(self) -> None:
        """The page looks for its server now, and not only when it is time."""
        self.page.evaluate("async () => { look(); await pause(0); await idle(); }")

    def choose(self, model: str, box: str = "Model") -> None:
        self.page.get_by_role("combobox", name=box).click()
        self.page.get_by_role("option", name=model).click()

    def answers(self, count: int) -> list[str]:
        """Once there are so many finished ones, each with its tokens in small print; two side by side are two."""
        expect(self.page.get_by_text(re.compile(r"[\d,]+ answer tokens"))).to_have_count(count)
        replies = self.page.locator("[class*=st-key-answer]").get_by_test_id("stMarkdown")
        return [reply.inner_text() for reply in replies.all()]

    def small_print(self) -> str:
        return self.page.get_by_text(re.compile(r"[\d,]+ answer tokens")).last.inner_text()

    def error(self) -> str:
        alert = self.page.get_by_test_id("stAlert")
        expect(alert).to_be_visible()
        return alert.inner_text()


@contextlib.contextmanager
def visit(browser: Browser, url: str, **options: Any) -> Iterator[Chat]:
    """A new visitor; `options` are those of playwright's `new_context`."""
    context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
    page = context.new_page()
    page.set_default_timeout(SECONDS)
    page.add_init_script(HELPERS)
    page.goto(url)
    expect(page.get_by_text("Ask about a picture").first).to_be_visible()
    yield Chat(page)
    context.close()
