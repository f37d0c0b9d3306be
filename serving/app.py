"""Where the app is built: vLLM's own FastAPI app and engine, and what stands around them."""

import asyncio
import socket
from argparse import Namespace
from typing import Any

from fastapi import FastAPI
from vllm import envs
from vllm.config import ModelConfig
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.launcher import serve_http, setup_server
from vllm.entrypoints.launchers.utils.server_utils import get_uvicorn_log_config
from vllm.tasks import SupportedTask

from qwen_vqa.serving.adapter_slots import ROUTE_GROUP
from qwen_vqa.serving.adapters import AdapterChanges, attach_adapter_routes
from qwen_vqa.serving.guard import stand_guard
from qwen_vqa.serving.image_features import attach_image_features
from qwen_vqa.serving.image_flags import image_rules
from qwen_vqa.serving.media import QwenVqaMediaConnector
from qwen_vqa.serving.model_card import attach_model_card
from qwen_vqa.serving.models_in_use import ModelsInUse
from qwen_vqa.serving.request_images import RequestImagesMiddleware
from qwen_vqa.serving.token_count import attach_token_count


async def run_server(args: Namespace) -> None:
    """Start the engine, and serve until told to stop."""
    _, sock = setup_server(args, reuse_port=False)
    try:
        async with build_async_engine_client(args) as engine:
            tasks = await engine.get_supported_tasks()
            app = build_server_app(args, tasks, engine.model_config, engine)
            await init_app_state(engine, app.state, args, tasks)
            stopped = await _serve(app, sock, args)
        await stopped  # after the engine is gone, as vLLM does it
    finally:
        sock.close()


def build_server_app(
    args: Namespace, tasks: tuple[SupportedTask, ...], model_config: ModelConfig, engine: EngineClient
) -> FastAPI:
    """vLLM's app with our routes. What is to stand around the model (keys, limits, pages) is added here."""
    app = build_app(args, tasks, model_config)
    if args.verify:
        attach_image_features(app, engine)
    QwenVqaMediaConnector.rules = image_rules(args)
    attach_token_count(app)
    attach_model_card(app)
    in_use = ModelsInUse()
    if args.guard.rules.is_open(ROUTE_GROUP):
        changes = AdapterChanges(model_config.hf_config, args.max_adapters, args.max_lora_rank, in_use)
        attach_adapter_routes(app, changes)
    # vLLM has built its stack already (for SageMaker), and building it again would lose its HTTP metrics: what is
    # added goes around it. The guard is outermost: no body is read of a request that has not passed the keys.
    app.middleware_stack = RequestImagesMiddleware(app.middleware_stack or app.build_middleware_stack())
    stand_guard(app, args, args.guard, model_config.hf_config.num_image_tokens, in_use)
    return app


async def _serve(app: FastAPI, sock: socket.socket, args: Namespace) -> asyncio.Task:
    log_config = get_uvicorn_log_config(args)
    uvicorn_options: dict[str, Any] = {} if log_config is None else {"log_config": log_config}
    return await serve_http(
        app,
        sock=sock,
        enable_ssl_refresh=args.enable_ssl_refresh,
        host=args.host,
        port=args.port,
        log_level=args.uvicorn_log_level,
        access_log=not args.disable_uvicorn_access_log,
        timeout_keep_alive=envs.VLLM_HTTP_TIMEOUT_KEEP_ALIVE,
        ssl_keyfile=args.ssl_keyfile,
        ssl_certfile=args.ssl_certfile,
        ssl_ca_certs=args.ssl_ca_certs,
        ssl_cert_reqs=args.ssl_cert_reqs,
        ssl_ciphers=args.ssl_ciphers,
        h11_max_incomplete_event_size=args.h11_max_incomplete_event_size,
        h11_max_header_count=args.h11_max_header_count,
        **uvicorn_options,
    )
