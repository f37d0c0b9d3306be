"""`qwen-vqa serve`: a checkpoint folder behind the OpenAI API, for many people at once.

qwen-vqa serve my-model --port 8000
"""

import asyncio
import os
import socket
import time
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn

from qwen_vqa.plugin.checkpoint_summary import checkpoint_summary
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.generation_defaults import Decoding
from qwen_vqa.plugin.hub_checkpoint import checkpoint_name, local_checkpoint
from qwen_vqa.serving import DEMO_CHECKPOINT, DEMO_NAME
from qwen_vqa.serving.adapters.adapter_slots import add_adapter_flags, complete_adapters
from qwen_vqa.serving.cpu.threads import wait_as_told, wait_asleep
from qwen_vqa.serving.observability.log import explain, say, set_format, set_verbose
from qwen_vqa.serving.process.compile_cache import keep_kernels
from qwen_vqa.serving.process.leftovers import use_own_name
from qwen_vqa.serving.process.listener import add_life_flags, check_same_listener, listen_flags
from qwen_vqa.serving.process.shared_memory import choose_image_cache
from qwen_vqa.serving.startup.serve_help import HELP
from qwen_vqa.serving.startup.several_servers import (
    add_api_server_flags,
    check_api_servers,
    check_limits_are_shared,
)
from qwen_vqa.serving.startup.tool_calls import STRICT_LEVEL, complete_tool_calls

if TYPE_CHECKING:
    from qwen_vqa.serving.checked_checkpoint import CheckedCheckpoint
    from qwen_vqa.serving.process.supervisor_link import ToSupervisor
    from qwen_vqa.serving.vllm_server_api import FlexibleArgumentParser

QUIET = "ignore::FutureWarning,ignore::DeprecationWarning,ignore::UserWarning:multiprocessing.resource_tracker"


def main(argv: list[str]) -> int:
    """Serve until told to stop, in a process of its own that is started again when it dies; returns the exit status.

    Raises:
        UserError: no such checkpoint, or the port cannot be had.
    """
    if "-h" in argv or "--help" in argv:
        print(HELP)
        return 0
    if any(argument.startswith("--help=") for argument in argv):
        from qwen_vqa.serving.startup.server_imports import check_server

        check_server()
        _parse(argv)  # vLLM's parser answers, and ends the program
    if argv and not argv[0].startswith("-"):
        argv = _with_local_checkpoint(argv)  # before vLLM's import, which takes seconds
    from qwen_vqa.serving.process.supervisor import supervise

    return supervise(argv)


def _with_local_checkpoint(argv: list[str]) -> list[str]:
    """The command line with the checkpoint's folder in place of a hub id and --revision.

    The server is started again when it dies: so it takes the same commit, and needs no hub.
    """
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--revision")
    args, others = parser.parse_known_args(argv[1:])
    return [str(local_checkpoint(argv[0], args.revision)), *others]


def serve(argv: list[str], sock: socket.socket, supervisor: "ToSupervisor") -> NoReturn:
    """The server's process: check, load, and serve on `sock` until told to stop or the engine dies.

    Raises:
        UserError: something that would keep the server from starting, said before the model loads.
    """
    started = time.monotonic()
    set_format(listen_flags(argv).log_format)
    environment = dict(os.environ)
    wait_asleep(os.environ)
    # vLLM and PyTorch read these when they are imported; what the user set stays.
    if "VLLM_LOGGING_LEVEL" not in os.environ:
        os.environ.update(VLLM_LOGGING_LEVEL="ERROR")
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_MEDIA_CONNECTOR", "qwen_vqa")
    # For vLLM's processes: what their libraries say to developers, on every start and stop.
    if "PYTHONWARNINGS" not in os.environ:
        os.environ["PYTHONWARNINGS"] = QUIET
        for category in (FutureWarning, DeprecationWarning):  # in an engine that is a copy of this process
            warnings.simplefilter("ignore", category)
    moved = keep_kernels(os.environ)
    say("checking the checkpoint and the installation")
    if moved:
        say(moved)
    from qwen_vqa.serving.cpu.engine_process import hold_to_one_thread

    hold_to_one_thread()
    from qwen_vqa.serving.checked_checkpoint import check_plugin, checked_checkpoint, register_imported_model
    from qwen_vqa.serving.startup.server_imports import check_server

    check_plugin()
    check_server()
    register_imported_model()
    args = _parse(argv)
    check_same_listener(argv, args)
    _complete_admission(args)
    checkpoint = checked_checkpoint(local_checkpoint(args.model, args.revision))
    args.model, args.revision = str(checkpoint.folder), None
    _complete(args, checkpoint, environment)
    more = "" if args.verbose else " (--verbose says what is chosen, and why)"
    say(f"loading {checkpoint.folder}: 10 to 60 seconds{more}")
    supervisor.loading()
    _run(args, sock, supervisor, started)


def server_parser() -> "FlexibleArgumentParser":
    """vLLM's command line of its server, with our flags and defaults."""
    from qwen_vqa.serving.admission.admission import add_admission_flags
    from qwen_vqa.serving.cpu.cpu_choices import add_cpu_flags
    from qwen_vqa.serving.http.http_protocol import HEAD_BYTES, HEADERS
    from qwen_vqa.serving.startup.image_flags import add_image_flags
    from qwen_vqa.serving.startup.serve_parser import ServeParser
    from qwen_vqa.serving.vllm_server_api import make_arg_parser

    parser = make_arg_parser(ServeParser(prog="qwen-vqa serve"))
    parser.add_argument("--verify", action="store_true", help="open the route that `qwen-vqa verify` uses")
    parser.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="say what was chosen, and why, and what the checkpoint makes of a request",
    )
    add_admission_flags(parser)
    add_life_flags(parser)
    add_api_server_flags(parser)
    add_image_flags(parser)
    add_adapter_flags(parser)
    add_cpu_flags(parser)
    parser.set_defaults(host="127.0.0.1", chat_template_content_format="openai", enable_prompt_tokens_details=True)
    parser.set_defaults(mm_processor_cache_type=None, mm_processor_cache_gb=None)  # process/shared_memory.py chooses
    # Its lines tell of what this command says itself; with --uvicorn-log-level info they are back.
    parser.set_defaults(h11_max_incomplete_event_size=HEAD_BYTES, h11_max_header_count=HEADERS)
    parser.set_defaults(tool_strict_level=STRICT_LEVEL, uvicorn_log_level="warning", scheme=None)
    parser.set_defaults(model=str(DEMO_CHECKPOINT))
    return parser


def _parse(argv: list[str]) -> Namespace:
    from qwen_vqa.serving.startup.image_flags import image_rules
    from qwen_vqa.serving.vllm_server_api import LoggingConfig, cli_env_setup, validate_parsed_serve_args

    cli_env_setup()
    args = server_parser().parse_args(argv)
    args.model = args.model_tag or args.model
    if args.verbose:
        set_verbose()
    choose_image_cache(args)
    image_rules(args)  # what is wrong with them is said before anything loads
    validate_parsed_serve_args(args)
    check_api_servers(args)
    if args.log_format == "json" and getattr(args, "logging_config", None) is None:
        args.logging_config = LoggingConfig(formatter="json")  # vLLM's own lines and uvicorn's
    return args


def _complete_admission(args: Namespace) -> None:
    from qwen_vqa.serving.admission.admission import bound_answers, exposed_without_keys, take_admission
    from qwen_vqa.serving.process.supervisor import RESTARTS

    args.admission = take_admission(args)
    check_limits_are_shared(args)
    bound_answers(args, args.admission)
    if (store := args.admission.limits_store()) and os.environ.get(RESTARTS, "0") == "0":
        asyncio.run(store.check())  # a server that is started again serves on, as --limits-unavailable says
    if exposed_without_keys(args, args.admission):
        say(f"anybody who reaches {args.host} may use this server: it has no --api-key and no --api-keys-file")


def _complete(args: Namespace, checkpoint: "CheckedCheckpoint", environment: Mapping[str, str]) -> None:
    """Fill in what the checkpoint and the machine say, where the user said nothing, in `environment` neither."""
    from qwen_vqa.serving.cpu.cpu_choices import complete_for_cpu
    from qwen_vqa.serving.startup.float_type import choose_gpu_float_type
    from qwen_vqa.serving.startup.gpu_memory import check_gpu_memory, gpu_memory
    from qwen_vqa.serving.startup.quantised_check import check_quantised, scheme_in_memory
    from qwen_vqa.serving.vllm_server_api import current_platform

    args.scheme = scheme_in_memory(args, checkpoint)
    for note in check_quantised(args, checkpoint):
        say(note)
    if args.served_model_name is None:
        is_demo = checkpoint.folder.resolve() == DEMO_CHECKPOINT.resolve()
        args.served_model_name = [DEMO_NAME if is_demo else checkpoint_name(checkpoint.folder)]
    complete_adapters(args, checkpoint, current_platform.is_cpu(), say)
    trained = checkpoint.config.trained_adapter
    args.trained_adapter = trained if trained in {module.name for module in args.lora_modules or []} else None
    complete_tool_calls(args, checkpoint.folder)
    complete_decoding(args, Decoding.of(checkpoint.folder))
    for name, value in checkpoint_summary(checkpoint.folder):
        explain(f"{name}: {value}")
    if args.verify:
        args.enable_scale_out = True  # vLLM's /v1/chat/completions/render, which shows prompt and pixels
        args.worker_extension_cls = "qwen_vqa.plugin.vllm_model.worker_extension.VerifyExtension"
    if current_platform.is_cpu():
        complete_for_cpu(args, checkpoint, environment, explain)
    else:
        wait_as_told(os.environ, environment)
        supported = [str(dtype).removeprefix("torch.") for dtype in current_platform.supported_dtypes]
        explain(choose_gpu_float_type(args, checkpoint, supported))
        if (memory := gpu_memory()) is not None:
            check_gpu_memory(args, checkpoint, memory)
        for flag, value in (("--output-layer", args.output_layer), ("--linear-layers", args.linear_layers)):
            if value is not None:
                raise UserError(f"{flag} is about memory on a CPU, and this server runs on a GPU: leave it out.")


def complete_decoding(args: Namespace, decoding: Decoding) -> None:
    """vLLM does not read `do_sample: false`; transformers, which the checkpoint's file is written for, does."""
    if decoding.greedy and args.generation_config == "auto":
        args.override_generation_config = {"temperature": 0.0, **(args.override_generation_config or {})}


def _run(args: Namespace, sock: socket.socket, supervisor: "ToSupervisor", started: float) -> NoReturn:
    use_own_name(os.environ)

    from qwen_vqa.serving.api_process import end, one_of_several, serve_api
    from qwen_vqa.serving.startup.ready_message import say_ready

    def ready() -> None:
        supervisor.ready()
        say_ready(args, started, supervisor.port_is_ours)

    if args.api_servers == 1:
        serve_api(args, sock, supervisor, ready)
    from qwen_vqa.serving.api_servers import run_api_servers

    end(run_api_servers(args, sock, supervisor, ready, one_of_several))
