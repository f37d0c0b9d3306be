"""The load generator's command line, and what it means."""

import argparse
import json
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen_vqa.benchmarks.load_generator.arrivals import Arrivals, read_trace
from qwen_vqa.benchmarks.load_generator.measurement_points import Plan
from qwen_vqa.benchmarks.load_generator.summary import Bounds
from qwen_vqa.benchmarks.load_generator.user_files import image_files, read_questions
from qwen_vqa.benchmarks.load_generator.workload import WorkloadSpec
from qwen_vqa.benchmarks.number_list import number_list
from qwen_vqa.plugin.errors import UserError


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Every flag with its default."""
    add = parser.add_argument
    add("--url", default="http://localhost:8000/v1", help="of an OpenAI server (default: %(default)s)")
    add("--model", help="(default: the server's first)")
    add("--api-key", default=os.environ.get("OPENAI_API_KEY"), help="(default: OPENAI_API_KEY)")
    add("--requests", type=int, default=200, help="in each cell (default: %(default)s; with --trace: its length)")
    add("--timeout", type=float, default=600.0, help="seconds for one request (default: %(default)s)")
    add("--extra-body", default="{}", help="JSON that is put into each request (default: %(default)s)")
    when = parser.add_argument_group("when requests are sent")
    when.add_argument(
        "--concurrency",
        help="closed loop: users, one cell each; 1,2,4..64 goes on by the last factor, 8..64 doubles (default: 1,8,32)",
    )
    when.add_argument("--rate", help="open loop: requests a second, one cell each; with ramp: 1-8 (default: none)")
    when.add_argument(
        "--arrivals", default="poisson", choices=["poisson", "gamma", "ramp"], help="of --rate (default: %(default)s)"
    )
    when.add_argument(
        "--burstiness", type=float, default=0.25, help="gamma's shape; smaller is burstier (default: %(default)s)"
    )
    when.add_argument("--trace", type=Path, help="replay: a line per request, seconds or JSON (default: none)")
    what = parser.add_argument_group("what is asked")
    what.add_argument(
        "--output-tokens", default="32", help="of each answer, or drawn from 16-64 (default: %(default)s)"
    )
    what.add_argument(
        "--image-size", default="640x480", help="drawn images, several with commas (default: %(default)s)"
    )
    what.add_argument(
        "--image-folder", type=Path, help="your own images, subfolders too, in place of drawn ones (default: none)"
    )
    what.add_argument("--questions", type=Path, help="a question a line, or JSON with question, image (default: ours)")
    what.add_argument("--images-per-request", type=int, default=1, help="(default: %(default)s; 0: text alone)")
    what.add_argument(
        "--text-words", type=int, default=0, help="drawn before each question of ours (default: %(default)s)"
    )
    what.add_argument("--repeated-images", type=float, default=0.0, help="share (default: %(default)s)")
    what.add_argument("--multi-turn", type=float, default=0.0, help="share of conversations (default: %(default)s)")
    what.add_argument("--turns", type=int, default=3, help="of those conversations (default: %(default)s)")
    what.add_argument("--adapters", default="", help="mixed in: NAME=SHARE with commas (default: none)")
    how = parser.add_argument_group("how it is measured")
    how.add_argument("--seed", type=int, help="of the first cell (default: a new one, so that caches are cold)")
    how.add_argument("--warm", action="store_true", help="measure each cell again with the same requests")
    how.add_argument("--warm-up", type=int, default=8, help="requests before each cell, not counted (default: 8)")
    how.add_argument("--processes", type=int, help="of the client (default: as many as it needs)")
    how.add_argument("--goodput", help="bounds in ms, for instance ttft:500,tpot:50,e2e:3000 (default: none)")
    how.add_argument("--allowed-errors", type=float, default=0.0, help="share; more: status 1 (default: %(default)s)")
    result = parser.add_argument_group("results")
    result.add_argument("--json", type=Path, help="write everything there (default: not written)")
    result.add_argument("--html", type=Path, help="write a page with plots there (default: not written)")
    result.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"), help="two JSON files; measures nothing")


def extra_body(text: str) -> tuple[tuple[str, Any], ...]:
    """Fields for every request."""
    try:
        return tuple(json.loads(text).items())
    except (ValueError, AttributeError):
        raise UserError(f"--extra-body {text}: expected a JSON object.") from None


def make_plan(args: argparse.Namespace, model: str, say: Callable[[str], None] = lambda text: None) -> Plan:
    """The run that the flags describe; `say` is told which of the user's images are left out.

    Raises:
        UserError: a value that makes no sense, by its flag's name.
    """
    _check(args)
    cells = _closed(args) + _open(args)
    lengths: tuple[int | None, ...] = ()
    requests = args.requests
    if args.trace:
        times, lengths = read_trace(args.trace)
        cells.append(Arrivals("trace", times=times))
        requests = len(times)
        if len(cells) > 1 or args.multi_turn:
            raise UserError("--trace is a run of its own: leave out --concurrency, --rate and --multi-turn.")
    return Plan(
        spec=_spec(args, model, say),
        cells=tuple(cells),
        requests=requests,
        seed=random.SystemRandom().randrange(1 << 31) if args.seed is None else args.seed,
        warm=args.warm,
        warm_up=args.warm_up,
        processes=args.processes,
        bounds=Bounds.parse(args.goodput) if args.goodput else None,
        lengths=lengths,
    )


def _check(args: argparse.Namespace) -> None:
    for name in ("repeated_images", "multi_turn", "allowed_errors"):
        if not 0 <= getattr(args, name) <= 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name):g}: expected a share from 0 to 1.")
    least_values = {"requests": 1, "turns": 2, "warm_up": 0, "images_per_request": 0, "text_words": 0, "processes": 1}
    for name, least in least_values.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} {value}: expected {least} or more.")
    for name in ("timeout", "burstiness"):
        if not 0 < getattr(args, name) < float("inf"):
            raise UserError(f"--{name} {getattr(args, name)}: expected a number above 0.")
    if args.seed is not None and not 0 <= args.seed < 1 << 31:
        raise UserError(f"--seed {args.seed}: expected 0 to {(1 << 31) - 1}.")
    for path in (args.json, args.html):
        if path and not path.absolute().parent.is_dir():
            raise UserError(f"{path}: there is no folder {path.absolute().parent}; make it first.")


def _closed(args: argparse.Namespace) -> list[Arrivals]:
    if args.concurrency is None and (args.rate or args.trace):
        return []
    text = "1,8,32" if args.concurrency is None else args.concurrency
    return [Arrivals("closed", concurrency=number) for number in number_list(text, "--concurrency")]


def _open(args: argparse.Namespace) -> list[Arrivals]:
    cells = []
    for part in (args.rate or "").split(","):
        if not part:
            continue
        if args.arrivals == "ramp":
            start, _, end = part.partition("-")
            cells.append(Arrivals("ramp", rate=_number(start, "--rate", float), rate_end=_number(end, "--rate", float)))
        else:
            rate = _number(part, "--rate", float)
            cells.append(Arrivals(args.arrivals, rate=rate, burstiness=args.burstiness))
    return cells


def _number(text: str, flag: str, kind: type) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = 0
    if not 0 < value < float("inf"):
        raise UserError(f"{flag} {text!r}: expected a number above 0 (a ramp: FROM-TO).")
    return value


def _spec(args: argparse.Namespace, model: str, say: Callable[[str], None]) -> WorkloadSpec:
    least, _, most = args.output_tokens.partition("-")
    tokens = (int(_number(least, "--output-tokens", int)), int(_number(most or least, "--output-tokens", int)))
    if tokens[0] > tokens[1]:
        raise UserError(f"--output-tokens {args.output_tokens}: the first is larger than the second.")
    spec = WorkloadSpec(
        models=model_shares(args.adapters, model),
        sizes=tuple(_size(part) for part in args.image_size.split(",")),
        images_per_request=args.images_per_request,
        text_words=args.text_words,
        repeated_images=args.repeated_images,
        multi_turn=args.multi_turn,
        turns=args.turns,
        output_tokens=tokens,
    )
    if args.image_folder:
        spec = replace(spec, files=image_files(args.image_folder, say))
    return replace(spec, questions=read_questions(args.questions)) if args.questions else spec


def model_shares(adapters: str, model: str) -> tuple[tuple[str, float], ...]:
    """What share of the requests goes to the model and to each of --adapters.

    Raises:
        UserError: the shares make no sense.
    """
    shares = []
    for part in adapters.split(","):
        name, _, share = part.rpartition("=")
        if part:
            shares.append((name, _number(share, "--adapters", float)))
    rest = 1 - sum(share for _, share in shares)
    if rest < -1e-9 or any(not name for name, _ in shares):
        raise UserError(f"--adapters {adapters}: expected NAME=SHARE, shares of 1 together at most.")
    return ((model, max(rest, 0.0)), *shares)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return int(_number(width, "--image-size", int)), int(_number(height, "--image-size", int))
