"""Where the app is built: vLLM's own FastAPI app and engine, and what stands around them."""

import asyncio
import os
import socket
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI
from starlette.middleware import Middleware

from qwen_vqa.plugin.config import QwenVqaConfig
from qwen_vqa.plugin.processor import QwenVqaProcessor
from qwen_vqa.serving.adapters.adapter_loading import AdapterChanges, attach_adapter_routes
from qwen_vqa.serving.adapters.adapter_slots import ROUTE_GROUP
from qwen_vqa.serving.adapters.models_in_use import ModelsInUse
from qwen_vqa.serving.admission.admission import cross_origin, fair_queue, usage_layer
from qwen_vqa.serving.admission.authentication import AccessMiddleware
from qwen_vqa.serving.admission.request_json import hand_over_json
from qwen_vqa.serving.engine import running_engine
from qwen_vqa.serving.errors.api_errors import ApiErrorsMiddleware
from qwen_vqa.serving.errors.validation_errors import attach_validation_errors, request_fields
from qwen_vqa.serving.observability.log import say
from qwen_vqa.serving.observability.metrics import watch
from qwen_vqa.serving.observability.request_log import RequestLogMiddleware
from qwen_vqa.serving.process.heap import keep_heap_small
from qwen_vqa.serving.process.http_server import serve_http
from qwen_vqa.serving.process.lifecycle import Lifecycle, LifecycleMiddleware, attach_ready
from qwen_vqa.serving.process.supervisor import RESTARTS
from qwen_vqa.serving.process.supervisor_link import ToSupervisor
from qwen_vqa.serving.requests.json_output import guide_json
from qwen_vqa.serving.requests.media_connector import QwenVqaMediaConnector
from qwen_vqa.serving.requests.model_card import attach_model_card, model_names
from qwen_vqa.serving.requests.request_images import CHECKS, RequestImagesMiddleware
from qwen_vqa.serving.requests.token_count import attach_token_count
from qwen_vqa.serving.requests.verify_routes import attach_verify_routes
from qwen_vqa.serving.start_page import attach_start_page
from qwen_vqa.serving.startup.image_flags import image_rules
from qwen_vqa.serving.startup.quantised_check import adapter_note
from qwen_vqa.serving.vllm_server_api import (
    EngineClient,
    ModelConfig,
    SupportedTask,
    build_app,
    cached_processor_from_config,
    envs,
    init_app_state,
)


async def run_server(
    args: Namespace,
    sock: socket.socket,
    ready: Callable[[], None],
    supervisor: ToSupervisor,
    client: dict[str, Any] | None = None,
) -> bool:
    """Start the engine, and serve until told to stop; returns whether the engine lived to the end.

    Args:
        sock: listening already.
        ready: called when the server answers.
        supervisor: is told when it takes no more connections.
        client: of one of several API processes, its way to the engine.
    """
    guide_json(args)
    async with running_engine(args, client) as engine:
        lifecycle = Lifecycle(lambda: engine.errored or supervisor.died.is_set(), args.drain_seconds)
        first = not (client and client["client_index"])
        if first:
            dtype = str(engine.model_config.dtype).removeprefix("torch.")
            say(f"computing in {dtype}{_vision_side(engine.model_config)}")
        QwenVqaMediaConnector.processor = cached_processor_from_config(
            engine.model_config, QwenVqaProcessor
        ).image_processor
        tasks = await engine.get_supported_tasks()
        port_is_ours = supervisor.port_is_ours.is_set
        app = build_server_app(args, tasks, engine.model_config, engine, lifecycle, port_is_ours, first)
        await init_app_state(engine, app.state, args, tasks)
        envs.enable_envs_cache()  # vLLM asks its variables for each token and request; its engine does the same
        trimming = asyncio.create_task(keep_heap_small())
        try:
            await serve_http(app, sock, args, lifecycle, ready, supervisor.closed)
        finally:
            trimming.cancel()
        return not lifecycle.engine_died()


def _vision_side(model_config: ModelConfig) -> str:
    """What the engine's vision side computes in, where that is not what the language model does."""
    apart = model_config.hf_config.vision_in_float32 and model_config.dtype != torch.float32
    return ", vision encoder and connector in float32" if apart else ""


def build_server_app(
    args: Namespace,
    tasks: tuple[SupportedTask, ...],
    model_config: ModelConfig,
    engine: EngineClient,
    lifecycle: Lifecycle,
    port_is_ours: Callable[[], bool],
    first: bool = True,
) -> FastAPI:
    """vLLM's app with our routes. What is to stand around the model (keys, limits, pages) is added here.

    Args:
        first: of several API processes, the one that counts the restarts.
    """
    app = build_app(args, tasks, model_config)
    if args.verify:
        attach_verify_routes(app, engine)
    QwenVqaMediaConnector.rules = image_rules(args)
    attach_token_count(app)
    attach_model_card(app)
    admission = args.admission
    config: QwenVqaConfig = model_config.hf_config  # type: ignore[assignment] # vLLM says less of it
    attach_start_page(app, partial(model_names, app), bool(admission.keys), admission.rules.is_open("docs"))
    in_use = ModelsInUse()
    if args.admission.rules.is_open(ROUTE_GROUP):
        note = partial(adapter_note, Path(args.model), args.scheme) if args.scheme else None
        changes = AdapterChanges(config, args.max_adapters, args.max_lora_rank, in_use, note, args.kept_adapters)
        attach_adapter_routes(app, changes)
    attach_ready(app, lifecycle, port_is_ours)
    attach_validation_errors(app)
    hand_over_json(app, CHECKS)
    queue = fair_queue(args.admission)
    watch(
        waiting=lambda: queue.waiting,
        running=lambda: queue.running,
        draining=lambda: lifecycle.reason is not None,
        restarts=int(os.environ.get(RESTARTS, "0")) if first else 0,
    )
    # From the outside in: a request passes them in this order, its answer in the other. No body is read before the keys
    # were looked at, and what any of them refuses is written as its API writes errors, and logged.
    layers = [
        Middleware(RequestLogMiddleware, writes=not args.disable_uvicorn_access_log),
        Middleware(ApiErrorsMiddleware, partial(model_names, app), request_fields()),
        Middleware(LifecycleMiddleware, lifecycle),
        *cross_origin(args),
        Middleware(AccessMiddleware, args.admission.rules, args.admission.keys),
        usage_layer(args.admission, config, queue, in_use),
        Middleware(RequestImagesMiddleware),
    ]
    # vLLM has built its stack already (for SageMaker), and building it again would lose its HTTP metrics, whose
    # middleware finds its own names taken: so all of this goes around what is built.
    app.middleware_stack = app.middleware_stack or app.build_middleware_stack()
    for layer, args_of, kwargs in reversed(layers):
        app.middleware_stack = layer(app.middleware_stack, *args_of, **kwargs)
    return app
