"""The README's first snippet, run as it stands."""

import re
import subprocess
import sys

from tests.server import Server
from tests.tiny import REPOSITORY


def test_the_first_snippet_prints_what_it_says(demo_server: Server):
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    [snippet] = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert "http://localhost:8000/v1" in snippet
    told = re.search(r"print\(.*\)  # (.+)$", snippet, re.MULTILINE)
    assert told
    run = subprocess.run(
        [sys.executable, "-c", snippet.replace("http://localhost:8000/v1", demo_server.url)],
        capture_output=True, text=True, timeout=120, check=True, cwd=REPOSITORY,
    )  # fmt: skip
    assert run.stdout.strip() == told[1]
