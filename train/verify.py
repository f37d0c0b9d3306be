"""`qwen-vqa verify`: is the served model the trained one? If not, what differs first.

qwen-vqa verify my-model                                        starts a server of its own, in float32
qwen-vqa verify my-model --url http://localhost:8000/v1         looks at one that runs
qwen-vqa verify my-model --image photo.jpg --prompt "What is this?"
"""

import argparse
import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from peft import PeftModel

from qwen_vqa.plugin.checkpoint import adapter_folders
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.image_loader import load_image
from qwen_vqa.train.adapter import attach_adapter
from qwen_vqa.train.checkpoint import load_processor, load_reference
from qwen_vqa.train.comparison import ADVICE, Reference, Tolerance, compare
from qwen_vqa.train.served_model import ServedModel, served_models
from qwen_vqa.train.server_process import started_server
from qwen_vqa.train.verify_cases import Case, built_in_cases, case


def build_parser(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The flags of `qwen-vqa verify`."""
    add = parser.add_argument
    add("checkpoint", type=Path, help="the checkpoint folder that was trained or assembled")
    add("--url", help="a running server, with /v1 (default: one is started for the time of the check)")
    add("--api-key", default="none", help="of that server (default: none)")
    add("--model", help="its name there (default: the first that it lists)")
    add("--image", action="append", default=[], type=Path, help="a picture of your own; may be repeated")
    add(
        "--prompt", action="append", default=[], help="a question of your own, asked about all --image; may be repeated"
    )
    add(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="of both sides (default: float32 for a server of its own, the checkpoint's for --url)",
    )
    add("--max-tokens", type=int, default=16, help="answer tokens compared (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the results there, too")
    return parser


def run(args: argparse.Namespace) -> int:
    """Compare the model and each of its adapters; 0 when all is equal, 1 when something differs."""
    cases = _cases(args)
    dtype = getattr(torch, args.dtype) if args.dtype else (torch.float32 if args.url is None else "auto")
    model = load_reference(args.checkpoint, dtype)
    processor = load_processor(args.checkpoint)
    tolerance = Tolerance.of(model.dtype)
    print(f"reference: {args.checkpoint}, {str(model.dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads")
    with _server(args, model.dtype) as url:
        names = served_models(url, args.api_key)
        base = args.model or names[0]
        if base not in names:
            raise UserError(f"{url} does not serve {base!r}; it has {', '.join(names)}.")
        results = _check(base, cases, Reference(model, processor), url, args, tolerance)
        for name, folder in adapter_folders(args.checkpoint).items():
            if name not in names:
                print(f"\n{name}: not served at {url}, not compared")
                continue
            model.language_model = attach_adapter(model.language_model, folder)
            results += _check(name, cases, Reference(model, processor), url, args, tolerance)
            if isinstance(model.language_model, PeftModel):
                model.language_model = model.language_model.unload()
    return _conclude(results, args)


def _cases(args: argparse.Namespace) -> list[Case]:
    if args.image and not args.prompt:
        raise UserError("--image needs a --prompt to ask about it.")
    images = [load_image(path) for path in args.image]
    own = [case(f"your prompt {number}", *images, prompt) for number, prompt in enumerate(args.prompt, start=1)]
    return built_in_cases() + own


def _check(
    name: str, cases: list[Case], reference: Reference, url: str, args: argparse.Namespace, tolerance: Tolerance
) -> list[dict]:
    print(f"\n{name} at {url}")
    served = ServedModel(url, name, args.api_key)
    results = []
    for one in cases:
        for result in compare(one, reference, served, tolerance, args.max_tokens):
            word = "equal" if result.equal and result.compared else "not seen" if result.equal else "DIFFERS"
            print(f"  {one.name:<24s}{result.stage:<14s}{word:<10s}{result.detail}", flush=True)
            results.append({"model": name, "case": one.name, **asdict(result)})
    return results


def _conclude(results: list[dict], args: argparse.Namespace) -> int:
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    different = [result for result in results if not result["equal"]]
    if not different:
        print(f"\nserving equals training: {len(results)} comparisons, none differs")
        return 0
    first = different[0]
    print(f"\nthe first difference is in the {first['stage']} ({first['model']}, {first['case']}): {first['detail']}")
    print(f"what to look at: {ADVICE[first['stage']]}")
    return 1


@contextlib.contextmanager
def _server(args: argparse.Namespace, dtype: torch.dtype) -> Iterator[str]:
    if args.url:
        yield args.url.rstrip("/")
        return
    arguments = [str(args.checkpoint), "--verify", "--dtype", str(dtype).removeprefix("torch.")]
    print(f"starting a server: qwen-vqa serve {' '.join(arguments)}", flush=True)
    with started_server(arguments, stdout=subprocess.DEVNULL) as (address, _):
        yield f"{address}/v1"
