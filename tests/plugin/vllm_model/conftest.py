"""vLLM's global state, for building the model's parts without an engine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen_vqa.plugin.registration import register_all


@pytest.fixture(scope="module")
def vllm_config(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """vLLM's global state for one rank, in place while the module's tests run."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed import (
        cleanup_dist_env_and_memory,
        init_distributed_environment,
        initialize_model_parallel,
    )
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.torch_utils import set_default_torch_dtype

    register_all()
    config = EngineArgs(str(checkpoint), dtype="float32", enforce_eager=True, max_model_len=128).create_engine_config()
    rendezvous = tmp_path_factory.mktemp("rendezvous") / "file"
    with set_current_vllm_config(config), set_default_torch_dtype(torch.float32):
        init_distributed_environment(1, 0, f"file://{rendezvous}", 0, "gloo")
        initialize_model_parallel(1, 1)
        yield config
        cleanup_dist_env_and_memory()
