"""uvicorn around the app, on a socket that listens already; it ends when the server's life does."""

import asyncio
import logging
import signal
import socket
from argparse import Namespace
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import uvicorn
from fastapi import FastAPI

from qwen_vqa.serving.http.bounded_server import AT_ONCE, BoundedServer, OnReserve
from qwen_vqa.serving.http.connections import Connections
from qwen_vqa.serving.process.lifecycle import Lifecycle
from qwen_vqa.serving.process.listener import HTTP
from qwen_vqa.serving.vllm_server_api import SSLCertRefresher, get_uvicorn_log_config

UPGRADE = "Unsupported upgrade request."
# For connections to close, once everything that ran has ended.
CLOSE_SECONDS = 2
LOOK_SECONDS = 0.02


async def serve_http(
    app: FastAPI,
    sock: socket.socket,
    args: Namespace,
    lifecycle: Lifecycle,
    ready: Callable[[], None],
    closed: Callable[[], None],
) -> None:
    """Serve until SIGTERM or SIGINT and the drain after it, or until the engine dies.

    Calls `ready` once it answers, and `closed` when it takes no more connections.
    """
    config = _config(app, args)
    # Every request of Java's HttpClient asks for HTTP/2 beside what it wants, and has its answer without.
    logging.getLogger("uvicorn.error").addFilter(lambda record: record.msg != UPGRADE)
    connections = Connections(args)
    at_once = AT_ONCE if args.api_servers == 1 else 1
    bounds = {"head_bytes": args.h11_max_incomplete_event_size, "headers": args.h11_max_header_count}
    server = BoundedServer(config, sock, connections, lifecycle.refusal, closed, at_once=at_once, **bounds)
    # vLLM's handler of errors tells it to stop when the engine dies, before the others have their answers: `lifecycle`
    # does that.
    app.state.server = SimpleNamespace(should_exit=False)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        if serving.done():
            return serving.result()
        await asyncio.sleep(LOOK_SECONDS)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, lifecycle.stop)
    refresher = _certificate_refresher(config, args)
    ready()
    await lifecycle.ended()
    server.should_exit = True
    await serving
    if refresher is not None:
        refresher.stop()


def _config(app: FastAPI, args: Namespace) -> uvicorn.Config:
    log_config = get_uvicorn_log_config(args)
    options: dict[str, Any] = {} if log_config is None else {"log_config": log_config}
    config = uvicorn.Config(
        OnReserve(app),
        log_level=args.uvicorn_log_level,
        access_log=False,  # serving/observability/request_log.py
        http=HTTP,
        timeout_keep_alive=args.keep_alive_seconds,
        timeout_graceful_shutdown=CLOSE_SECONDS,
        ssl_keyfile=args.ssl_keyfile,
        ssl_certfile=args.ssl_certfile,
        ssl_ca_certs=args.ssl_ca_certs,
        ssl_cert_reqs=args.ssl_cert_reqs,
        ssl_ciphers=args.ssl_ciphers,
        **options,
    )
    config.load()
    return config


def _certificate_refresher(config: uvicorn.Config, args: Namespace) -> SSLCertRefresher | None:
    if not args.enable_ssl_refresh or config.ssl is None:
        return None
    return SSLCertRefresher(config.ssl, args.ssl_keyfile, args.ssl_certfile, args.ssl_ca_certs)
