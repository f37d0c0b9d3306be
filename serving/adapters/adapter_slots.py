"""How many adapters a server holds, and the room that vLLM makes for them at its start."""

import argparse
import os
from argparse import Namespace
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.adapters.adapters_file import AdaptersFile
from qwen_vqa.serving.observability.log import say as say_always

if TYPE_CHECKING:
    from qwen_vqa.plugin.config import QwenVqaConfig
    from qwen_vqa.serving.checked_checkpoint import CheckedCheckpoint

ROUTE_GROUP = "adapters"
# Where adapters may come and go. Room for each is taken at the start.
DEFAULT_ADAPTERS = 4
# The original recipe's, which those who load an adapter later are likely to have trained with.
DEFAULT_RANK = 64
# Adapters of one batch, on a GPU, where each slot takes memory; more adapters than slots take turns.
MAX_SLOTS = 8


def add_adapter_flags(parser: argparse.ArgumentParser) -> None:
    """--max-adapters; and vLLM's --max-lora-rank without its default, to see whether somebody gave it."""
    parser.add_argument(
        "--max-adapters",
        type=int,
        help=f"adapters held at once, with --open-routes {ROUTE_GROUP} (default: {DEFAULT_ADAPTERS}, or those named)",
    )
    parser.add_argument(
        "--adapters-file", type=Path, help="where what is loaded and unloaded is kept for the next start"
    )
    parser.set_defaults(max_lora_rank=None, kept_adapters=None)


def complete_adapters(
    args: Namespace, checkpoint: "CheckedCheckpoint", on_cpu: bool, say: Callable[[str], None]
) -> None:
    """The folder's adapters beside those of the command line and of --adapters-file, each looked at, and room for all.

    Raises:
        UserError: an adapter cannot be served, there are more than --max-adapters, or --adapters-file is not right.
    """
    from qwen_vqa.plugin.lora.adapter import check_adapter
    from qwen_vqa.serving.vllm_server_api import LoRAConfig, LoRAModulePath

    named = {module.name: Path(module.path) for module in args.lora_modules or []} | checkpoint.adapters
    args.kept_adapters = _kept(args, named)
    if args.kept_adapters:
        named = args.kept_adapters.added_to(named, lambda path: check_adapter(path, checkpoint.config), say_always)
    args.max_adapters = _most(args, len(named))
    summaries = {name: check_adapter(path, checkpoint.config) for name, path in named.items()}
    for name, summary in summaries.items():
        say(f"adapter {name}: rank {summary.rank}, alpha {summary.alpha:g}")
    rank = args.max_lora_rank or (
        DEFAULT_RANK if args.admission.rules.is_open(ROUTE_GROUP) else LoRAConfig.max_lora_rank
    )
    args.max_lora_rank = allocated_rank(max([rank, *(summary.rank for summary in summaries.values())]))
    if not args.max_adapters:
        return
    args.lora_modules = [LoRAModulePath(name=name, path=str(path)) for name, path in named.items()]
    args.enable_lora = True
    # On a CPU, vLLM 0.32 gives tokens without an adapter what lies in the last slot (its pull request 48421):
    # one slot more than adapters keeps that one empty.
    slots = args.max_adapters + 1 if on_cpu else min(args.max_adapters, MAX_SLOTS)
    args.max_loras = max(args.max_loras, slots)
    # What falls out of vLLM's memory is read from its folder again in the middle of a step, and a folder that is gone
    # by then ends the engine: so nothing falls out.
    args.max_cpu_loras = max(args.max_cpu_loras or 0, args.max_adapters, args.max_loras)


def slot_bytes(args: Namespace, config: "QwenVqaConfig", number_bytes: int) -> int:
    """What all slots take in memory: each has room for both sides of an adapter of --max-lora-rank on every layer."""
    from qwen_vqa.plugin.lora.adapter import linear_layers
    from qwen_vqa.plugin.lora.adapter_names import OUTPUT_LAYER

    if not args.enable_lora:
        return 0
    widths = sum(sum(both) for name, both in linear_layers(config).items() if name != OUTPUT_LAYER)
    return args.max_loras * args.max_lora_rank * widths * number_bytes


def _kept(args: Namespace, given: Collection[str]) -> AdaptersFile | None:
    if args.adapters_file is None:
        return None
    if not args.admission.rules.is_open(ROUTE_GROUP):
        raise UserError(f"--adapters-file keeps adapters that come at run time: add --open-routes {ROUTE_GROUP}.")
    return AdaptersFile(args.adapters_file, given)


def _most(args: Namespace, named: int) -> int:
    """Adapters that the server will hold at most."""
    if os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "0").strip().lower() in ("1", "true"):
        raise UserError(
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING opens vLLM's own routes, which load an adapter unseen. Unset it; "
            f"--open-routes {ROUTE_GROUP} opens the same routes with checks, for an admin's key."
        )
    if not args.admission.rules.is_open(ROUTE_GROUP):
        if args.max_adapters is not None:
            raise UserError(f"--max-adapters bounds adapters that come at run time: add --open-routes {ROUTE_GROUP}.")
        return named
    most = max(DEFAULT_ADAPTERS, named) if args.max_adapters is None else args.max_adapters
    if most < max(named, 1):
        raise UserError(f"--max-adapters is {most}; the least is {max(named, 1)}, with {named} adapters at the start.")
    return most


def allocated_rank(rank: int) -> int:
    """The smallest rank that vLLM allocates and that holds this one.

    Raises:
        UserError: vLLM has none so large.
    """
    from typing import get_args

    from qwen_vqa.serving.vllm_server_api import MaxLoRARanks

    ranks = [allowed for allowed in get_args(MaxLoRARanks) if allowed >= rank]
    if not ranks:
        raise UserError(f"an adapter has rank {rank}; vLLM serves at most {max(get_args(MaxLoRARanks))}.")
    return min(ranks)
