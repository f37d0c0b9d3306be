"""The servers that these tests share: started once a session, the tiny model's and the demo's."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.image_server import ImageServer, image_server
from tests.server import Server, serving
from tests.tiny import DEMO


@pytest.fixture(scope="session")
def tiny_with_adapter(tiny_checkpoint: Path, tiny_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with its adapter in the folder, as a user would have it."""
    folder = tmp_path_factory.mktemp("served") / "tiny"
    shutil.copytree(tiny_checkpoint, folder)
    shutil.copytree(tiny_adapter, folder / "adapters" / "tiny-lora")
    return folder


@pytest.fixture(scope="session")
def trusted_images() -> Iterator[ImageServer]:
    """The one web server on this machine that `tiny_server` may fetch from."""
    with image_server() as running:
        yield running


@pytest.fixture(scope="session")
def tiny_server(
    tiny_with_adapter: Path, trusted_images: ImageServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The tiny random model in float32. Requests may bring a chat template, so that one server does for all."""
    log = tmp_path_factory.mktemp("log") / "tiny.log"
    arguments = [str(tiny_with_adapter), "--dtype", "float32", "--verify", "--trust-request-chat-template"]
    arguments += ["--trusted-image-host", f"127.0.0.1:{trusted_images.port}", "--image-fetch-seconds", "3"]
    with serving(log, *arguments) as server:
        yield server


@pytest.fixture(scope="session")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The bundled demo as `make serve` starts it, but in float32: its numbers are held to the reference's."""
    log = tmp_path_factory.mktemp("log") / "demo.log"
    with serving(log, "--dtype", "float32", "--verify") as server:
        yield server


@pytest.fixture(scope="session")
def demo_checkpoint() -> Path:
    """The bundled demo's folder."""
    return DEMO
