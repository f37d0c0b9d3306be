"""Who may call, and how much: the flags of `serve`, and what they set up in the middlewares around vLLM's app."""

import argparse
import ipaddress
import os
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.adapters.models_in_use import ModelsInUse
from qwen_vqa.serving.admission.api_keys import KeyRing
from qwen_vqa.serving.admission.fair_queue import FairQueue
from qwen_vqa.serving.admission.limits_store import (
    STORAGE_VARIABLE,
    UNAVAILABLE,
    LimitsStore,
    Unavailable,
    storage_url,
)
from qwen_vqa.serving.admission.request_bounds import RequestBounds
from qwen_vqa.serving.admission.route_rules import RouteRules
from qwen_vqa.serving.admission.usage_limits import CallerLimits, UsageMiddleware

if TYPE_CHECKING:
    from qwen_vqa.plugin.config import QwenVqaConfig

# Flag, default, smallest value, what it bounds. 0, where it is allowed, is no limit.
NUMBERS = {
    "requests-per-minute": (0, 0, "requests that each caller may make in a minute"),
    "image-tokens-per-minute": (0, 0, "image tokens that each caller may send in a minute"),
    "running-per-caller": (0, 0, "requests of one caller that run at once"),
    "running": (256, 1, "requests that run at once; the rest wait"),
    "waiting-per-caller": (64, 0, "requests of one caller that wait"),
    "waiting": (1024, 0, "requests that wait, of all callers together"),
    "wait-seconds": (60, 1, "longest wait"),
    "max-body-mb": (32, 1, "longest body of a request, in MiB"),
    "max-images": (32, 0, "images in one request"),
    "max-n": (16, 0, "answers that one request asks for"),
    "max-output-tokens": (0, 0, "tokens of one answer"),
}


@dataclass(frozen=True)
class AdmissionSettings:
    """Who may call, and how much: the flags, read.

    `first_key` is one that was given as it is, for what this command itself asks.
    """

    keys: KeyRing = field(repr=False)
    first_key: str | None = field(repr=False)
    rules: RouteRules = field(repr=False)
    numbers: dict[str, int]
    storage: str | None = field(repr=False)
    unavailable: Unavailable

    def limits_store(self) -> LimitsStore | None:
        """Where limits are counted; None for this process' memory."""
        return LimitsStore(self.storage, self.unavailable) if self.storage else None


def add_admission_flags(parser: argparse.ArgumentParser) -> None:
    """Who may call, and how much: flags beside vLLM's own --api-key and --allowed-origins."""
    parser.add_argument("--api-keys-file", type=Path, help="named keys; read again when it changes")
    parser.add_argument("--open-routes", default="", help="groups of routes to open, with commas between them")
    parser.add_argument("--limits-storage", help=f"where limits are counted; also {STORAGE_VARIABLE}")
    parser.add_argument("--limits-unavailable", choices=UNAVAILABLE, default="refuse", help="while it does not answer")
    for name, (default, _, text) in NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default: {default})")


def take_admission(args: Namespace) -> AdmissionSettings:
    """What the flags say. The keys are taken out of `args` and the environment, so that nothing can log them.

    Raises:
        UserError: a number below its least, an unknown group of routes, a keys file that is not right, vLLM is told to
            keep responses, or --limits-unavailable without a store.
    """
    if "" in (args.api_key or []):
        raise UserError('--api-key is empty. Is the variable in --api-key "$KEY" set? Leave the flag out for no key.')
    if os.environ.get("VLLM_ENABLE_RESPONSES_API_STORE", "0").strip() not in ("", "0"):
        raise UserError(
            "VLLM_ENABLE_RESPONSES_API_STORE is set: vLLM would keep every response in memory for ever, and show it to "
            "any key that knows its id. Unset it; clients send the whole conversation."
        )
    plain = [key for key in (args.api_key or [os.environ.get("VLLM_API_KEY")]) if key]
    # vLLM would put its own check around /v1, and hand both on to its processes.
    storage = storage_url(args.limits_storage)
    args.api_key = args.limits_storage = None
    os.environ.pop("VLLM_API_KEY", None)
    if args.limits_unavailable == "allow" and storage is None:
        raise UserError("--limits-unavailable is about --limits-storage, and there is none: leave it out.")
    numbers = {}
    for name, (_, least, text) in NUMBERS.items():
        numbers[name] = getattr(args, name.replace("-", "_"))
        if numbers[name] < least:
            raise UserError(f"--{name} ({text}) is {numbers[name]}; the least is {least}.")
    groups = [group.strip() for group in args.open_routes.split(",") if group.strip()]
    return AdmissionSettings(
        keys=KeyRing(plain, args.api_keys_file),
        first_key=plain[0] if plain else None,
        rules=RouteRules([*groups, "verify"] if args.verify else groups),
        numbers=numbers,
        storage=storage,
        unavailable=args.limits_unavailable,
    )


def bound_answers(args: Namespace, settings: AdmissionSettings) -> None:
    """Requests that name no max_tokens get --max-output-tokens, through vLLM's own setting for it."""
    bound = settings.numbers["max-output-tokens"]
    if bound:
        args.override_generation_config = {"max_new_tokens": bound, **(args.override_generation_config or {})}


def exposed_without_keys(args: Namespace, settings: AdmissionSettings) -> bool:
    """Whether the server listens beyond this machine and asks nobody for a key."""
    if settings.keys or args.uds:
        return False
    try:
        return not ipaddress.ip_address(args.host or "0.0.0.0").is_loopback
    except ValueError:
        return args.host != "localhost"


def fair_queue(settings: AdmissionSettings) -> FairQueue:
    """The queue before the engine, as large as the flags say."""
    number = settings.numbers
    return FairQueue(number["running"], number["waiting"], number["waiting-per-caller"])


def usage_layer(
    settings: AdmissionSettings, config: "QwenVqaConfig", queue: FairQueue, in_use: ModelsInUse
) -> Middleware:
    """What counts, bounds and queues requests, as the flags say."""
    number = settings.numbers
    return Middleware(
        UsageMiddleware,
        limits=CallerLimits(
            number["requests-per-minute"], number["image-tokens-per-minute"], number["running-per-caller"]
        ),
        bounds=RequestBounds(number["max-images"], number["max-n"], number["max-output-tokens"]),
        queue=queue,
        tokens_per_image=config.most_image_tokens,
        tokens_in_low_detail=config.tokens_per_view,
        max_body_bytes=number["max-body-mb"] * 2**20,
        wait_seconds=number["wait-seconds"],
        in_use=in_use,
        store=settings.limits_store(),
    )


def cross_origin(args: Namespace) -> list[Middleware]:
    """CORS, where origins are configured. (vLLM's own CORS layer, inside, does nothing without origins.)

    It stands outside the keys: a browser sends none with its preflight, and shows a refusal to its page only with
    CORS headers.
    """
    if not args.allowed_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=args.allowed_origins,
            allow_credentials=args.allow_credentials,
            allow_methods=args.allowed_methods,
            allow_headers=args.allowed_headers,
        )
    ]
