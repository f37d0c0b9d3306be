"""The engine's process on a CPU: one with its worker, its threads bound or not, and new or a copy of this one."""

import contextlib
from argparse import Namespace
from collections.abc import Callable, Iterator

from qwen_vqa.serving.cpu.engine_process import copied
from qwen_vqa.serving.vllm_server_api import OMPProcessManager, VllmConfig

# By its full name: "uni" is what vLLM turns into "mp" on a CPU, because the threads of OpenMP have to be bound before
# the process starts that they are in. That is done below for the engine's own process.
ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


def choose_executor(args: Namespace, say: Callable[[str], None]) -> None:
    """Without a worker process of its own, where one worker is all there is, and the user chose nothing."""
    parts = args.tensor_parallel_size * args.pipeline_parallel_size * args.data_parallel_size
    if args.distributed_executor_backend is None and parts == 1:
        args.distributed_executor_backend = ONE_PROCESS
        say(
            f"processes: {'one' if args.api_servers == 1 else args.api_servers} for the API, where callers' limits are "
            "counted, and one for the engine, which saves one more import of vLLM (--distributed-executor-backend mp: "
            "its worker apart)"
        )


@contextlib.contextmanager
def engine_environment(args: Namespace, config: VllmConfig) -> Iterator[None]:
    """For starting the engine: threads as `complete_for_cpu` chose them, and its process."""
    with args.threads.applied(), _bound_threads(config), _process(args):
        yield


def _process(args: Namespace) -> contextlib.AbstractContextManager[None]:
    """The engine's: a copy of this one where nothing speaks against it, in place of vLLM's new one."""
    return copied(args.threads.unbound) if args.engine_copied else contextlib.nullcontext()


def _bound_threads(config: VllmConfig) -> contextlib.AbstractContextManager[None]:
    """What vLLM's executor of several processes sets for its workers, for the engine's process."""
    if config.parallel_config.distributed_executor_backend != ONE_PROCESS:
        return contextlib.nullcontext()
    return OMPProcessManager(config).configure_omp_envs(rank=0, local_rank=0)
