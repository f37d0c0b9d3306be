"""What every engine and server imports, for the process of which the tests' engines and servers are copies."""

import os

from tests.plugin.engine import ENVIRONMENT

os.environ.update(ENVIRONMENT)  # some of it is read when vLLM and PyTorch are imported

import vllm.entrypoints.launchers.api_server.app_state
import vllm.entrypoints.launchers.app
import vllm.v1.engine.llm_engine
import vllm.v1.executor.uniproc_executor
import vllm.v1.worker.cpu_worker  # noqa: F401
