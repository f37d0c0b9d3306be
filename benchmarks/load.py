"""Measure what a server does for many people at once.

python benchmarks/load.py --url http://localhost:8000/v1 --concurrency 1,8,32 --requests 200 --json out.json
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from qwen_vqa.benchmarks.environment import environment
from qwen_vqa.benchmarks.load_flags import add_flags, extra_body, make_plan, model_shares
from qwen_vqa.benchmarks.load_generator.client_overhead import Ceiling, measure_ceiling
from qwen_vqa.benchmarks.load_generator.image_repeats import repeat_notes
from qwen_vqa.benchmarks.load_generator.measurement_points import Plan, run_cells
from qwen_vqa.benchmarks.load_generator.server_probe import Probed, probe
from qwen_vqa.benchmarks.load_generator.streaming_client import Target
from qwen_vqa.benchmarks.load_report.compare import compare
from qwen_vqa.benchmarks.load_report.live_progress import Progress
from qwen_vqa.benchmarks.load_report.load_page import page
from qwen_vqa.benchmarks.load_report.load_table import cell_table
from qwen_vqa.plugin.command.server_address import server_url
from qwen_vqa.plugin.errors import INTERRUPTED, UserError

FORMAT = "qwen-vqa load 1"


def build_parser(parser: argparse.ArgumentParser) -> None:
    """Add this job's flags."""
    add_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, print and write; returns 0, 1 with more failed requests than allowed, 130 after Ctrl-C.

    Raises:
        UserError: bad flags, a server that cannot be asked, or a client that stopped; what was measured before that is
            printed and written.
    """
    if args.compare:
        if args.json or args.html:
            raise UserError("--compare prints a table and writes nothing: leave out --json and --html.")
        print(compare(*(read_result(path) for path in args.compare)))
        return 0
    try:
        return _run(args)
    except KeyboardInterrupt:
        say("interrupted before anything was measured")
        return INTERRUPTED


def _run(args: argparse.Namespace) -> int:
    target = Target(server_url(args.url), args.api_key, args.timeout, extra_body=extra_body(args.extra_body))
    plan = make_plan(args, "model", say)  # what is wrong with the flags is said before the server is asked
    probed = probe(target, args.model)
    plan = replace(plan, spec=replace(plan.spec, models=model_shares(args.adapters, args.model or probed.models[0])))
    _check_models(plan, probed)
    result = measure(plan, probed, sys.argv)
    if result["cells"] or not result["error"]:
        print(cell_table(result))
        _write(result, args.json, args.html)
    if result["error"]:
        raise UserError(result["error"])
    return _status(result, args.allowed_errors)


def measure(plan: Plan, probed: Probed, argv: list[str]) -> dict[str, Any]:
    """Run the cells and return all that the JSON holds; `error` says what ended the run early, if anything did."""
    result: dict[str, Any] = {
        "format": FORMAT,
        "environment": environment(argv, probed.target.api_key),
        "server": {"url": probed.target.url, "version": probed.version, "models": probed.models},
        "workload": asdict(plan.spec) | {"requests": plan.requests, "warm_up": plan.warm_up},
        "goodput_bounds_ms": dict(plan.bounds.milliseconds) if plan.bounds else None,
        "left_out": [*probed.left_out, *repeat_notes(plan)],
        "client_ceiling": None,
        "cells": [],
        "interrupted": False,
        "error": None,
    }
    try:
        ceiling = measure_ceiling(plan.spec)
        result["client_ceiling"] = asdict(ceiling)
        _announce(plan, probed, ceiling)
        with Progress() as progress:
            for cell in run_cells(plan, probed.target, progress.show):
                result["cells"].append(cell)
                result["interrupted"] = cell["interrupted"]
    except KeyboardInterrupt:
        result["interrupted"] = True
    except UserError as error:
        result["error"] = str(error)
    return result


def read_result(path: Path) -> dict[str, Any]:
    """A JSON file that this program wrote.

    Raises:
        UserError: it is none.
    """
    try:
        result = json.loads(path.read_text())
        if result["format"] != FORMAT:
            raise UserError(f"{path} has the format {result['format']!r}; this version reads {FORMAT!r}.")
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not a result of the load generator ({error}).") from None
    return result


def _check_models(plan: Plan, probed: Probed) -> None:
    for name, _ in plan.spec.models:
        if name not in probed.models:
            raise UserError(f"--adapters: the server has no {name}; it has {', '.join(probed.models)}.")


def _announce(plan: Plan, probed: Probed, ceiling: Ceiling) -> None:
    version = f"vLLM {probed.version}" if probed.version else "version unknown"
    say(f"{probed.target.url} ({version}), model {plan.spec.models[0][0]}, seed {plan.seed}")
    say(
        f"the client itself: {ceiling.cpu_ms_per_request:.2f} ms of CPU per request of {ceiling.output_tokens:.0f} "
        f"tokens, so {ceiling.requests_per_second:.0f} requests/s at most in one process"
    )
    for note in probed.left_out:
        say(note)


def _write(result: dict[str, Any], json_path: Path | None, html_path: Path | None) -> None:
    if json_path:
        json_path.write_text(json.dumps(result) + "\n")
        say(f"wrote {json_path}")
    if html_path:
        html_path.write_text(page(result))
        say(f"wrote {html_path}")


def _status(result: dict[str, Any], allowed_errors: float) -> int:
    if result["interrupted"]:
        say("interrupted; what was measured until then is above")
        return INTERRUPTED
    over = [cell for cell in result["cells"] if cell["summary"]["error_share"] > allowed_errors]
    for cell in over:
        summary = cell["summary"]
        say(f"{cell['label']}, {cell['cache']}: {summary['failed']} of {summary['requests']} requests failed")
    return 1 if over else 0


def say(text: str) -> None:
    """To people, beside the results."""
    print(f"load: {text}", file=sys.stderr, flush=True)


def main() -> int:
    """As a script; the same as `qwen-vqa load`."""
    parser = argparse.ArgumentParser(
        prog="load.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    build_parser(parser)
    started = time.monotonic()
    try:
        status = run(parser.parse_args())
    except UserError as error:
        print(f"load: {error}", file=sys.stderr)
        return 2
    say(f"{time.monotonic() - started:.0f} s")
    return status


if __name__ == "__main__":
    sys.exit(main())
