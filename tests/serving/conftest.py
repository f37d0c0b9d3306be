"""The servers that these tests share: started once a session, the tiny model's and the demo's."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from openai import OpenAI

from tests.image_server import ImageServer, image_server
from tests.server import Server, serving
from tests.serving.trace_collector import TraceCollector
from tests.serving.trace_collector import trace_collector as running_collector
from tests.tiny import DEMO, make_adapter


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
    """The tiny random model, in float32. Requests may bring a chat template, so that one server does for all."""
    log = tmp_path_factory.mktemp("log") / "tiny.log"
    arguments = [str(tiny_with_adapter), "--verify", "--trust-request-chat-template"]
    arguments += ["--trusted-image-host", f"127.0.0.1:{trusted_images.port}", "--image-fetch-seconds", "3"]
    arguments += ["--max-images", "200", "--open-routes", "docs"]
    with serving(log, *arguments) as server:
        yield server


@pytest.fixture(scope="session")
def random_demo_adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two untrained adapters for the demo, which `demo_server` has beside the demo's own."""
    folder = tmp_path_factory.mktemp("demo-adapters")
    return {f"random-{seed}": make_adapter(DEMO, folder / f"random-{seed}", seed) for seed in (1, 2)}


@pytest.fixture(scope="session")
def demo_server(random_demo_adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The bundled demo as `make serve` starts it, but in float32: its numbers are held to the reference's."""
    log = tmp_path_factory.mktemp("log") / "demo.log"
    modules = [f"{name}={folder}" for name, folder in random_demo_adapters.items()]
    with serving(log, "--verbose", "--dtype", "float32", "--lora-modules", *modules) as server:
        yield server


@pytest.fixture(scope="session")
def demo_checkpoint() -> Path:
    """The bundled demo's folder."""
    return DEMO


@dataclass(frozen=True)
class GuardedServer(Server):
    """A server with keys and limits."""

    keys: dict[str, str]
    keys_file: Path

    @property
    def address(self) -> str:
        """Without /v1."""
        return self.url.removesuffix("/v1")

    def client_with(self, key: str) -> OpenAI:
        """OpenAI's SDK with this key, retries off."""
        return OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=120)

    def headers(self, name: str) -> dict[str, str]:
        """The header of the key of this name."""
        return {"Authorization": f"Bearer {self.keys[name]}"}


# What each of the guarded server's keys may use; each is one test's own, so that tests do not use up each other's.
GUARDED_LIMITS: dict[str, dict] = {
    "alice": {},
    "operator": {"admin": True},
    "three-a-minute": {"requests_per_minute": 3},
    "two-images-a-minute": {"image_tokens_per_minute": 10},
    "one-at-once": {"running": 1},
    "quiet": {},
    "flood": {"requests_per_minute": 10, "running": 1},
    "chat-once-a-minute": {"requests_per_minute": 1},
}


@pytest.fixture(scope="session")
def trace_collector() -> Iterator[TraceCollector]:
    """Where `guarded_server` sends its traces."""
    with running_collector() as collector:
        yield collector


@pytest.fixture(scope="session")
def guarded_server(
    tiny_checkpoint: Path, trace_collector: TraceCollector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GuardedServer]:
    """The tiny model with keys, small limits, and one origin; its log is JSON, its traces go to `trace_collector`."""
    folder = tmp_path_factory.mktemp("guarded")
    keys = {name: f"{name}-secret-0123456789" for name in GUARDED_LIMITS}
    entries = [{"name": name, "key": keys[name], **limits} for name, limits in GUARDED_LIMITS.items()]
    keys_file = folder / "keys.json"
    keys_file.write_text(json.dumps({"keys": entries}))
    arguments = ["--served-model-name", "tiny", "--api-keys-file", str(keys_file)]
    arguments += ["--open-routes", "scaling,adapters", "--max-adapters", "3", "--running", "4"]
    arguments += ["--allowed-origins", '["https://example.org"]']
    arguments += ["--waiting-per-caller", "2", "--max-body-mb", "1", "--max-images", "4", "--max-n", "3"]
    arguments += ["--max-output-tokens", "600", "--log-format", "json"]
    arguments += ["--otlp-traces-endpoint", trace_collector.endpoint]
    with serving(folder / "guarded.log", str(tiny_checkpoint), *arguments) as server:
        yield GuardedServer(server.url, server.log, server.process, keys, keys_file)
