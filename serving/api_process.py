"""The process that answers requests: the only one, or one of several (`--api-servers`)."""

import gc
import os
import socket
from argparse import Namespace
from collections.abc import Callable
from typing import Any, NoReturn

import uvloop

import qwen_vqa.serving.requests.media_connector  # noqa: F401 - registers the media connector
from qwen_vqa.serving.app import run_server
from qwen_vqa.serving.checked_checkpoint import check_plugin, register_imported_model
from qwen_vqa.serving.observability.log import flush, set_format, set_verbose
from qwen_vqa.serving.process.supervisor_link import ToSupervisor
from qwen_vqa.serving.startup.several_servers import take_share

ENGINE_DIED = os.EX_TEMPFAIL  # the exit status that tells the supervisor


def serve_api(
    args: Namespace,
    sock: socket.socket,
    supervisor: ToSupervisor,
    ready: Callable[[], None],
    client: dict[str, Any] | None = None,
) -> NoReturn:
    """Serve until told to stop, or an engine dies; `run_server` has the arguments."""
    # All that is imported stays: looking through it again takes time, and in an engine that is a copy of this process
    # it takes the memory, too, that both share until one of them writes to it.
    gc.collect()
    gc.freeze()
    gc.enable()
    end(uvloop.run(run_server(args, sock, ready, supervisor, client)))


def one_of_several(args: Namespace, sock: socket.socket, supervisor: ToSupervisor, client: dict[str, Any]) -> NoReturn:
    """The same in a new process, to which `serve` hands what it has chosen."""
    set_format(args.log_format)
    if args.verbose:
        set_verbose()
    check_plugin()
    register_imported_model()
    take_share(args)
    serve_api(args, sock, supervisor, supervisor.ready, client)


def end(lived: bool) -> NoReturn:
    """End this process; past here is only the interpreter's own, in which triton's bindings print forty lines."""
    flush()
    os._exit(0 if lived else ENGINE_DIED)
