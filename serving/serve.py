"""`qwen-vqa serve`: a checkpoint folder behind the OpenAI API, for many people at once.

qwen-vqa serve my-model --port 8000
"""

import gc
import os
import shutil
import socket
import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from qwen_vqa.plugin.checkpoint import check_checkpoint
from qwen_vqa.plugin.checkpoint_summary import checkpoint_summary
from qwen_vqa.plugin.decoding import Decoding
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving import DEMO_CHECKPOINT, DEMO_NAME
from qwen_vqa.serving.adapter_slots import add_adapter_flags, complete_adapters
from qwen_vqa.serving.compile_cache import is_writable, keep_kernels
from qwen_vqa.serving.listener import add_life_flags, check_same_listener, listen_flags
from qwen_vqa.serving.log import say, set_format
from qwen_vqa.serving.threads import no_choice, wait_asleep
from qwen_vqa.serving.tool_calls import STRICT_LEVEL, complete_tool_calls

if TYPE_CHECKING:
    from qwen_vqa.serving.checks import CheckedCheckpoint
    from qwen_vqa.serving.server_process import ToSupervisor
    from qwen_vqa.serving.vllm_api import FlexibleArgumentParser

# A GiB holds 600 images of 384 x 384 in float32.
IMAGE_CACHE_GIB = 1.0
LEAST_IMAGE_CACHE_GIB = 0.1
ENGINE_DIED = os.EX_TEMPFAIL  # the exit status that tells the supervisor
QUIET = "ignore::FutureWarning,ignore::DeprecationWarning,ignore::UserWarning:multiprocessing.resource_tracker"
HELP = """\
usage: qwen-vqa serve [CHECKPOINT] [options] [any option of vLLM's server]

Serve a checkpoint folder behind the OpenAI API. Without CHECKPOINT: the bundled demo model.
Adapters in CHECKPOINT/adapters are served as models by their folders' names.

options:
  --host HOST            address to listen on (default: 127.0.0.1; 0.0.0.0 for everybody, with keys)
  --port PORT            (default: 8000)
  --served-model-name N  what requests call the model (default: the folder's name; the demo: qwen-vqa-demo)
  --max-model-len N      longest prompt and answer together, in tokens (default: the language model's limit)
  --dtype DTYPE          auto, bfloat16, float16 or float32, of the language model (default: auto, the checkpoint's own;
                         on a CPU without arithmetic of that type float32, where there is the memory)
  --output-layer O       on a CPU, where input and output embeddings are the same numbers: packed (faster where several
                         answers are decoded at once), shared (holds them once; default with 4-bit checkpoints) or mixed
                         (packed, but up to 4 answers are decoded from the 16-bit input side; default otherwise)
  --linear-layers L      on a CPU that serves a 16-bit checkpoint in float32: packed (in float32), or mixed (that, and
                         the 16 bits beside it, from which up to 4 answers are decoded faster; default where that takes
                         no more than half of the memory that the weights leave)
  --max-num-batched-tokens N  tokens of one step of the engine, of prompts and answers together (default: on a CPU 512)
  --lora-modules N=PATH  more adapters, beside those in the folder
  --max-adapters N       adapters held at once, where --open-routes adapters lets an admin's key load and unload them:
                         POST /v1/load_lora_adapter, /v1/unload_lora_adapter (default: 4, or those there at the start)
  --max-lora-rank N      largest rank of an adapter (default: 16, with --open-routes adapters 64, or more if an adapter
                         that is there at the start has more)
  --max-image-mb N       largest file of an image, in MiB (default: 20)
  --max-image-pixels N   largest width x height of an image (default: 50000000)
  --allowed-media-domains H ...    fetch images from these hosts only (default: from any public one)
  --trusted-image-host HOST[:PORT] fetch from it also if its address is private; may be repeated (default: none)
  --image-fetch-seconds N          for fetching one image (default: 10)
  --image-redirects N              redirects followed for one image (default: 3)
  --image-user-agent TEXT          who asks, as hosts of images are told (default: qwen-vqa/VERSION); some, such as
                                   Wikimedia's, want a contact: "my-service/1.0 (https://example.org; me@example.org)"
  --tool-call-parser P   how tool calls are read out of an answer (default: hermes, with --enable-auto-tool-choice,
                         where the checkpoint's template and tokenizer are Qwen's; else none)
  --tool-strict-level L  how far calls are held to the tools' schemas: auto (those with "strict": true), function,
                         parameter (default: parameter, all of them)
  --drain-seconds N      told to stop, what runs has so long to finish (default: 25; Kubernetes kills after 30)
  --keep-alive-seconds N an idle connection is kept so long (default: 75; longer than a load balancer in front of it)
  --log-format FORMAT    text or json, one object a line (default: text); never prompts, pictures or keys
  --no-restart           end with status 1 when the engine dies (default: start it again)
  -v, --verbose          say what the checkpoint makes of a request: prompt, pixels, float types, decoding
  --verify               open the routes through which `qwen-vqa verify` sees pixels and features
  --help=all             every option of vLLM's server

who may call (every route asks for a key, where there are keys; /health and /ready alone do not):
  --api-key KEY ...      keys that clients may send (default: VLLM_API_KEY, or none)
  --api-keys-file FILE   named keys with limits of their own; read again when it changes (see below)
  --open-routes GROUPS   routes that are off otherwise, with commas between: adapters, batch, development, docs,
                         profiling, sagemaker, scale-out, scaling, scoring, tokenizer-info, verify
  --allowed-origins LIST origins whose web pages may call, as JSON: '["https://example.org"]' (default: none)

how much (a caller is a key, or an address where there are no keys; 0 is no limit):
  --requests-per-minute N      requests of one caller in a minute (default: 0)
  --image-tokens-per-minute N  image tokens of one caller in a minute (default: 0)
  --running-per-caller N       requests of one caller that run at once (default: 0)
  --running N                  requests that run at once, of all callers (default: 256)
  --waiting-per-caller N       requests of one caller that wait for a turn (default: 64; 0: none waits)
  --waiting N                  requests that wait for a turn, of all callers (default: 1024; 0: none waits)
  --wait-seconds N             longest wait (default: 60)
  --max-body-mb N              longest body of a request, in MiB (default: 32)
  --max-images N               images in one request (default: 32)
  --max-n N                    answers that one request asks for (default: 16)
  --max-output-tokens N        tokens of one answer, also where a request names none (default: 0)

A keys file is JSON. A key stands in it as "key" or, hashed, as "sha256"; what else is in an entry is optional:
  {"keys": [{"name": "alice", "key": "AT-LEAST-16-CHARACTERS", "admin": false,
             "requests_per_minute": 60, "image_tokens_per_minute": 30000, "running": 4}]}

vLLM's own log is kept to errors; VLLM_LOGGING_LEVEL=INFO shows all of it.

examples:
  qwen-vqa serve                                   the demo at http://localhost:8000/v1
  qwen-vqa serve my-model --port 9000
  qwen-vqa serve my-model --host 0.0.0.0 --api-key "$KEY" --max-model-len 4096
"""


def main(argv: list[str]) -> int:
    """Serve until told to stop, in a process of its own that is started again when it dies; returns the exit status.

    Raises:
        UserError: no such checkpoint, or the port cannot be had.
    """
    if "-h" in argv or "--help" in argv:
        print(HELP)
        return 0
    if any(argument.startswith("--help=") for argument in argv):
        from qwen_vqa.serving.server_imports import check_server

        check_server()
        _parse(argv)  # vLLM's parser answers, and ends the program
    if argv and not argv[0].startswith("-"):
        check_checkpoint(Path(argv[0]))  # before vLLM's import, which takes seconds
    from qwen_vqa.serving.supervisor import supervise

    return supervise(argv)


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
    from qwen_vqa.serving.engine_process import hold_to_one_thread

    hold_to_one_thread()
    from qwen_vqa.serving.checks import check_plugin, checked_checkpoint, register_imported_model
    from qwen_vqa.serving.server_imports import check_server

    check_plugin()
    check_server()
    register_imported_model()
    args = _parse(argv)
    check_same_listener(argv, args)
    _complete_guard(args)
    checkpoint = checked_checkpoint(Path(args.model))
    _complete(args, checkpoint, environment)
    say(f"loading {checkpoint.folder}")
    _run(args, sock, supervisor, started)


def server_parser() -> "FlexibleArgumentParser":
    """vLLM's command line of its server, with our flags and defaults."""
    from qwen_vqa.serving.cpu_choices import add_cpu_flags
    from qwen_vqa.serving.guard import add_guard_flags
    from qwen_vqa.serving.image_flags import add_image_flags
    from qwen_vqa.serving.vllm_api import FlexibleArgumentParser, make_arg_parser

    parser = make_arg_parser(FlexibleArgumentParser(prog="qwen-vqa serve"))
    parser.add_argument("--verify", action="store_true", help="open the route that `qwen-vqa verify` uses")
    parser.add_argument("-v", "--verbose", action="store_true", help="say what the checkpoint makes of a request")
    add_guard_flags(parser)
    add_life_flags(parser)
    add_image_flags(parser)
    add_adapter_flags(parser)
    add_cpu_flags(parser)
    parser.set_defaults(host="127.0.0.1", chat_template_content_format="openai", enable_prompt_tokens_details=True)
    # In its other form ("lru"), vLLM's cache of processed images believes that the engine has what a refused request
    # brought, and answers the next request for that image with 500.
    parser.set_defaults(mm_processor_cache_type="shm", mm_processor_cache_gb=None)
    # Its lines tell of what this command says itself; with --uvicorn-log-level info they are back.
    parser.set_defaults(tool_strict_level=STRICT_LEVEL, uvicorn_log_level="warning", scheme=None)
    return parser


def _parse(argv: list[str]) -> Namespace:
    from qwen_vqa.serving.image_flags import image_rules
    from qwen_vqa.serving.vllm_api import LoggingConfig, cli_env_setup, validate_parsed_serve_args

    cli_env_setup()
    args = server_parser().parse_args(argv)
    args.model = args.model_tag or str(DEMO_CHECKPOINT)
    if args.mm_processor_cache_gb is None:
        args.mm_processor_cache_gb = _image_cache_gib()
    image_rules(args)  # what is wrong with them is said before anything loads
    validate_parsed_serve_args(args)
    _check_one_server(args)
    if args.log_format == "json" and getattr(args, "logging_config", None) is None:
        args.logging_config = LoggingConfig(formatter="json")  # vLLM's own lines and uvicorn's
    return args


def _check_one_server(args: Namespace) -> None:
    """Raises UserError for what only `vllm serve` can start: several API servers, or none."""
    if args.api_server_count not in (None, 1):
        raise UserError(
            f"--api-server-count is {args.api_server_count}; limits and queue are counted in one process, so there is "
            "one. For more, start several servers behind a load balancer that reads /ready."
        )
    for name in ("headless", "grpc", "data_parallel_multi_port_external_lb"):
        if getattr(args, name, False):
            raise UserError(f"--{name.replace('_', '-')} starts no OpenAI API; qwen-vqa serve does not have it.")


def _image_cache_gib(shared_memory: Path = Path("/dev/shm")) -> float:
    """Shared memory for processed images: at most half of what is free, which in a container may be little."""
    if not is_writable(shared_memory):
        say(f"no cache of processed images: {shared_memory} cannot be written")
        return 0
    free = shutil.disk_usage(shared_memory).free / 2**30
    size = min(IMAGE_CACHE_GIB, free / 2)
    if size < LEAST_IMAGE_CACHE_GIB:
        say(f"no cache of processed images: /dev/shm has {free:.2f} GiB free (docker run --shm-size gives more)")
        return 0
    say(f"cache of processed images: {size:.2g} GiB of shared memory, {free:.2g} are free (--mm-processor-cache-gb)")
    return size


def _complete_guard(args: Namespace) -> None:
    from qwen_vqa.serving.guard import bound_answers, exposed_without_keys, take_guard

    args.guard = take_guard(args)
    bound_answers(args, args.guard)
    if exposed_without_keys(args, args.guard):
        say(f"anybody who reaches {args.host} may use this server: it has no --api-key and no --api-keys-file")


def _complete(args: Namespace, checkpoint: "CheckedCheckpoint", environment: Mapping[str, str]) -> None:
    """Fill in what the checkpoint and the machine say, where the user said nothing, in `environment` neither."""
    from qwen_vqa.serving.cpu_choices import complete_for_cpu
    from qwen_vqa.serving.engine import choose_executor
    from qwen_vqa.serving.float_type import choose_gpu_float_type
    from qwen_vqa.serving.quantised import check_quantised, scheme_in_memory
    from qwen_vqa.serving.vllm_api import current_platform

    args.scheme = scheme_in_memory(args, checkpoint)
    for note in check_quantised(args, checkpoint):
        say(note)
    choose_executor(args, say)
    if args.served_model_name is None:
        is_demo = checkpoint.folder.resolve() == DEMO_CHECKPOINT.resolve()
        args.served_model_name = [DEMO_NAME if is_demo else checkpoint.folder.resolve().name]
    trained = checkpoint.config.trained_adapter
    args.trained_adapter = trained if trained in checkpoint.adapters else None
    complete_adapters(args, checkpoint, current_platform.is_cpu(), say)
    complete_tool_calls(args, checkpoint.folder)
    complete_decoding(args, Decoding.of(checkpoint.folder))
    if args.verbose:
        for name, value in checkpoint_summary(checkpoint.folder):
            say(f"{name}: {value}")
    if args.verify:
        args.enable_scale_out = True  # vLLM's /v1/chat/completions/render, which shows prompt and pixels
        args.worker_extension_cls = "qwen_vqa.plugin.worker_extension.VerifyExtension"
    args.threads, args.engine_copied = no_choice(environment), False
    if current_platform.is_cpu():
        complete_for_cpu(args, checkpoint, environment, say)
    else:
        supported = [str(dtype).removeprefix("torch.") for dtype in current_platform.supported_dtypes]
        say(choose_gpu_float_type(args, checkpoint, supported))
        for flag, value in (("--output-layer", args.output_layer), ("--linear-layers", args.linear_layers)):
            if value is not None:
                raise UserError(f"{flag} is about memory on a CPU, and this server runs on a GPU: leave it out.")


def complete_decoding(args: Namespace, decoding: Decoding) -> None:
    """vLLM does not read `do_sample: false`; transformers, which the checkpoint's file is written for, does."""
    if decoding.greedy and args.generation_config == "auto":
        args.override_generation_config = {"temperature": 0.0, **(args.override_generation_config or {})}


def _run(args: Namespace, sock: socket.socket, supervisor: "ToSupervisor", started: float) -> NoReturn:
    import uvloop

    import qwen_vqa.serving.media  # noqa: F401 - registers the media connector
    from qwen_vqa.serving.app import run_server
    from qwen_vqa.serving.welcome import welcome

    # All that is imported stays: looking through it again takes time, and in an engine that is a copy of this process
    # it takes the memory, too, that both share until one of them writes to it.
    gc.collect()
    gc.freeze()
    gc.enable()

    def ready() -> None:
        supervisor.ready()
        welcome(args, started, supervisor.port_is_ours)

    lived = uvloop.run(run_server(args, sock, ready, supervisor.closed, supervisor.port_is_ours.is_set))
    sys.stdout.flush()
    # Past here is only the interpreter's own end, in which triton's bindings print forty lines about leaks.
    os._exit(0 if lived else ENGINE_DIED)
