"""vLLM's engine for the server."""

import contextlib
from argparse import Namespace
from collections.abc import AsyncIterator

from qwen_vqa.serving.vllm_server_api import (
    AsyncEngineArgs,
    AsyncLLM,
    UsageContext,
    VllmConfig,
    current_platform,
)


@contextlib.asynccontextmanager
async def running_engine(args: Namespace) -> AsyncIterator[AsyncLLM]:
    """Start the engine; it is shut down at the end."""
    engine_args = AsyncEngineArgs.from_cli_args(args)
    config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    with _environment(args, config):
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


def _environment(args: Namespace, config: VllmConfig) -> contextlib.AbstractContextManager[None]:
    if not current_platform.is_cpu():
        return contextlib.nullcontext()
    from qwen_vqa.serving.cpu.executor import engine_environment

    return engine_environment(args, config)
