"""What the whole session shares: tiny checkpoints, made once."""

import os
import signal
import tempfile
from pathlib import Path

import pytest

# Read when `datasets` is imported: the tests' Arrow files do not belong into the user's cache.
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="qwen-vqa-tests-")

# A job in the background ignores Ctrl-C, and so would whatever the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import qwen_vqa.train.model  # noqa: F401 - registers the model with transformers
from tests.tiny import make_adapter, make_checkpoint

pytest_plugins = ["tests.device_markers"]
METHOD = "VLLM_WORKER_MULTIPROC_METHOD"


def pytest_runtest_setup() -> None:
    """vLLM sets this where tests make its configuration, and a server started later would take it for the user's."""
    os.environ.pop(METHOD, None)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint (Qwen2, tied embeddings, float32)."""
    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def tiny_adapter(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter for `tiny_checkpoint`."""
    return make_adapter(tiny_checkpoint, tmp_path_factory.mktemp("adapter") / "tiny-lora")
