"""`--api-servers`: what several API processes can do together, and what each of them may do."""

import argparse
import dataclasses
from argparse import Namespace

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.adapters.adapter_slots import ROUTE_GROUP

# Bounds of all callers together, of which each process takes its part.
SHARED_OUT = ("running", "waiting")
CALLERS_LIMITS = ("requests-per-minute", "image-tokens-per-minute", "running-per-caller")


def add_api_server_flags(parser: argparse.ArgumentParser) -> None:
    """--api-servers, in place of vLLM's --api-server-count."""
    parser.add_argument("--api-servers", type=int, default=1, help="processes that answer requests (default: 1)")


def check_api_servers(args: Namespace) -> None:
    """Raises UserError for what only `vllm serve` can start, and what several processes cannot do together."""
    if args.api_server_count not in (None, 1):
        raise UserError(f"--api-server-count is vLLM's; for {args.api_server_count} here, pass --api-servers.")
    for name in ("headless", "grpc", "data_parallel_multi_port_external_lb"):
        if getattr(args, name, False):
            raise UserError(f"--{name.replace('_', '-')} starts no OpenAI API; qwen-vqa serve does not have it.")
    if args.api_servers < 1:
        raise UserError(f"--api-servers is {args.api_servers}; the least is 1.")
    if args.api_servers > 1 and args.enable_elastic_ep:
        raise UserError("--enable-elastic-ep works with one API process alone: leave --api-servers out.")
    if args.api_servers > 1 and args.data_parallel_backend == "ray":
        raise UserError("--data-parallel-backend ray: nobody would watch its engines. Leave --api-servers out.")


def check_limits_are_shared(args: Namespace) -> None:
    """To be called once `args.admission` is there.

    Raises:
        UserError: each of several processes would allow a caller the whole limit, or load an adapter for itself alone.
    """
    if args.api_servers == 1:
        return
    if args.admission.storage is None:
        limits = [f"--{name}" for name in CALLERS_LIMITS if args.admission.numbers[name]]
        if args.api_keys_file:
            limits.append("--api-keys-file, whose keys may have limits at any time,")
        if limits:
            raise UserError(
                f"--api-servers {args.api_servers} and {limits[0]} need --limits-storage: in its own memory, each "
                "process would allow a caller the whole limit."
            )
    if args.admission.rules.is_open(ROUTE_GROUP):
        raise UserError(
            f"--api-servers {args.api_servers} with --open-routes {ROUTE_GROUP}: the other processes would not know an "
            "adapter that one of them loads. Leave one of the two flags out; adapters that are there at the start stay."
        )


def take_share(args: Namespace) -> None:
    """In one of the processes: its part of what all of them may do together."""
    numbers = {name: _part(args.admission.numbers[name], args.api_servers) for name in SHARED_OUT}
    args.admission = dataclasses.replace(args.admission, numbers={**args.admission.numbers, **numbers})
    args.connections = _part(args.connections, args.api_servers)


def _part(whole: int, parts: int) -> int:
    return -(-whole // parts)
