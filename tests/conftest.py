"""What the whole session shares: tiny checkpoints, made once."""

import gc
import os
import re
import signal
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

# Read when `datasets` is imported: the tests' Arrow files do not belong into the user's cache.
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="qwen-vqa-tests-")

# A job in the background ignores Ctrl-C, and so would whatever the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import qwen_vqa.train.model.reference_model  # noqa: F401 - registers the model with transformers
from tests.tiny import REPOSITORY, make_adapter, make_checkpoint

pytest_plugins = ["tests.device_markers"]
METHOD = "VLLM_WORKER_MULTIPROC_METHOD"
SERVERS = ("tiny_server", "demo_server", "guarded_server")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of `make test JOBS=2`: what is of a file goes to one process, and all files that share the session's servers."""
    from xdist.scheduler import LoadScopeScheduling

    class ByServers(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return servers_or(nodeid.partition("::")[0])

    return ByServers(config, log)


@cache
def servers_or(file: str) -> str:
    """The file's own name, unless its tests name a server of the session."""
    text = (REPOSITORY / file).read_text(encoding="utf-8")
    return "servers" if any(re.search(rf"\b{name}\b", text) for name in SERVERS) else file


def pytest_runtest_setup() -> None:
    """vLLM sets this where tests make its configuration, and a server started later would take it for the user's."""
    os.environ.pop(METHOD, None)


@pytest.fixture(scope="module", autouse=True)
def nothing_imported_is_garbage() -> None:
    """Training and calibration collect garbage again and again, each time through all that was ever imported: half a
    second. What is there when a file's tests begin stays, and is not looked at again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """At the interpreter's end Triton's bindings print what they take for leaks of what was never looked at."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint (Qwen2, tied embeddings, float32)."""
    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def tiny_adapter(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter for `tiny_checkpoint`."""
    return make_adapter(tiny_checkpoint, tmp_path_factory.mktemp("adapter") / "tiny-lora")
