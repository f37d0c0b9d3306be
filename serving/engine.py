"""vLLM's engine for the server."""

import contextlib
from argparse import Namespace
from collections.abc import AsyncIterator, Iterator
from typing import Any

from qwen_vqa.serving.vllm_server_api import (
    AsyncEngineArgs,
    AsyncLLM,
    CoreEngineLaunch,
    EngineZmqListeners,
    Executor,
    UsageContext,
    VllmConfig,
    bind_engine_zmq_listeners,
    current_platform,
    launch_core_engines,
)


@contextlib.asynccontextmanager
async def running_engine(args: Namespace, client: dict[str, Any] | None = None) -> AsyncIterator[AsyncLLM]:
    """Start the engine; it is shut down at the end.

    Args:
        client: of one of several API processes: its way to engines that run already, and lives on at the end.
    """
    client = dict(client or {})
    count, index = client.pop("client_count", 1), client.pop("client_index", 0)
    client.pop("api_server_loads", None)  # vLLM's acceptor looks at it; ours takes one connection at a time
    engine_args = _engine_args(args, count, index)
    config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    with contextlib.nullcontext() if client else _environment(args, config):
        engine = AsyncLLM.from_vllm_config(
            vllm_config=config,
            usage_context=UsageContext.OPENAI_API_SERVER,
            enable_log_requests=engine_args.enable_log_requests,
            aggregate_engine_logging=engine_args.aggregate_engine_logging,
            disable_log_stats=engine_args.disable_log_stats,
            client_addresses=client or None,
            client_count=count,
            client_index=index,
        )
    try:
        await engine.reset_mm_cache()  # of the pictures that it was warmed up with
        yield engine
    finally:
        engine.shutdown(timeout=config.shutdown_timeout)


@contextlib.contextmanager
def launched_engines(args: Namespace) -> Iterator[tuple[VllmConfig, EngineZmqListeners, CoreEngineLaunch]]:
    """Start the engines for several API processes, which are to be started within; after that all of them answer."""
    engine_args = _engine_args(args, args.api_servers, -1)
    config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    listeners = bind_engine_zmq_listeners(config, args.api_servers)
    log_stats = not engine_args.disable_log_stats
    with (
        _environment(args, config),
        launch_core_engines(config, Executor.get_class(config), log_stats, listeners.addresses) as launch,
    ):
        yield config, listeners, launch


def _engine_args(args: Namespace, api_processes: int, rank: int) -> AsyncEngineArgs:
    engine_args = AsyncEngineArgs.from_cli_args(args)
    engine_args._api_process_count, engine_args._api_process_rank = api_processes, rank
    return engine_args


def _environment(args: Namespace, config: VllmConfig) -> contextlib.AbstractContextManager[None]:
    if not current_platform.is_cpu():
        return contextlib.nullcontext()
    from qwen_vqa.serving.cpu.executor import engine_environment

    return engine_environment(args, config)
