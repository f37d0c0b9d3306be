"""vLLM's engine for the server; on a CPU in one process with its worker, which halves what has to be imported."""

import contextlib
from argparse import Namespace
from collections.abc import AsyncIterator, Callable

from qwen_vqa.serving.cpu.engine_process import copied
from qwen_vqa.serving.vllm_server_api import (
    AsyncEngineArgs,
    AsyncLLM,
    OMPProcessManager,
    UsageContext,
    VllmConfig,
    current_platform,
)

# By its full name: "uni" is what vLLM turns into "mp" on a CPU, because the threads of OpenMP have to be bound before
# the process starts that they are in. That is done below for the engine's own process.
ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


def choose_executor(args: Namespace, say: Callable[[str], None]) -> None:
    """Without a worker process of its own on a CPU, where one worker is all there is, and the user chose nothing."""
    parts = args.tensor_parallel_size * args.pipeline_parallel_size * args.data_parallel_size
    if current_platform.is_cpu() and args.distributed_executor_backend is None and parts == 1:
        args.distributed_executor_backend = ONE_PROCESS
        say(
            "processes: one for the API, where callers' limits are counted, and one for the engine, which saves one "
            "more import of vLLM (--distributed-executor-backend mp: its worker apart)"
        )


@contextlib.asynccontextmanager
async def running_engine(args: Namespace) -> AsyncIterator[AsyncLLM]:
    """Start the engine; it is shut down at the end."""
    engine_args = AsyncEngineArgs.from_cli_args(args)
    config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    with args.threads.applied(), _bound_threads(config), _process(args):
        engine = AsyncLLM.from_vllm_config(
            vllm_config=config,
            usage_context=UsageContext.OPENAI_API_SERVER,
            enable_log_requests=engine_args.enable_log_requests,
            aggregate_engine_logging=engine_args.aggregate_engine_logging,
            disable_log_stats=engine_args.disable_log_stats,
        )
    try:
        await engine.reset_mm_cache()  # of the pictures that it was warmed up with
        yield engine
    finally:
        engine.shutdown(timeout=config.shutdown_timeout)


def _process(args: Namespace) -> contextlib.AbstractContextManager[None]:
    """The engine's: a copy of this one where nothing speaks against it, in place of vLLM's new one."""
    return copied(args.threads.unbound) if args.engine_copied else contextlib.nullcontext()


def _bound_threads(config: VllmConfig) -> contextlib.AbstractContextManager[None]:
    """What vLLM's executor of several processes sets for its workers, for the engine's process."""
    if config.parallel_config.distributed_executor_backend != ONE_PROCESS:
        return contextlib.nullcontext()
    return OMPProcessManager(config).configure_omp_envs(rank=0, local_rank=0)
