"""`qwen-vqa verify`: is the served model the trained one? If not, what differs first.

qwen-vqa verify my-model                                        starts a server as `qwen-vqa serve my-model` does
qwen-vqa verify my-model --url http://localhost:8000/v1         looks at one that runs
qwen-vqa verify my-model --image photo.jpg --prompt "What is this?"
qwen-vqa verify my-model --against script_output.json           holds it to what a training script wrote
"""

import argparse
import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import asdict

import torch
from peft import PeftModel

from qwen_vqa.plugin.checkpoint_files import adapter_folders
from qwen_vqa.plugin.checkpoint_summary import summary_lines
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.images.image_loader import load_image
from qwen_vqa.plugin.processor import QwenVqaProcessor
from qwen_vqa.train.model.compute_device import GIB, chosen_device, device_with_room
from qwen_vqa.train.model.reference_adapter import attach_adapter
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference
from qwen_vqa.train.verify.local_server import started_server
from qwen_vqa.train.verify.script_output import ADVICE_FOR_SCRIPTS, ScriptCase, compare_with_script, read_script_output
from qwen_vqa.train.verify.served_stages import GREEDY, ServedModel, ServerSettings, served_models
from qwen_vqa.train.verify.stage_comparison import ADVICE, Reference, StageResult, Tolerance, compare
from qwen_vqa.train.verify.verify_cases import VerifyCase, built_in_cases, case


def run(args: argparse.Namespace) -> int:
    """Compare the model and each of its adapters; 0 when all is equal, 1 when something differs."""
    chosen_device(args.device)  # said before a server is started
    script = read_script_output(args.against) if args.against else None
    cases = _cases(args)
    print("\n".join([f"{args.checkpoint}", *summary_lines(args.checkpoint)]), flush=True)
    with _server(args) as url:
        names = served_models(url, args.api_key)
        base = args.model or names[0]
        if base not in names:
            raise UserError(f"{url} does not serve {base!r}; it has {', '.join(names)}.")
        served = ServedModel(url, base, args.api_key)
        settings = served.settings()
        dtype = _float_type(args, settings)
        print("\n".join(_served_lines(settings, dtype)), flush=True)
        decoding = {} if settings and settings.is_plain_greedy else GREEDY
        served = ServedModel(url, base, args.api_key, decoding=decoding)
        if script is not None:
            results = _check_script(served, script, load_processor(args.checkpoint), Tolerance.of(dtype))
            return _conclude(results, args, ADVICE_FOR_SCRIPTS, "the server does what the script did")
        results = _check_all(served, names, cases, dtype, args)
    return _conclude(results, args, ADVICE, "serving equals training")


def _cases(args: argparse.Namespace) -> list[VerifyCase]:
    images = [load_image(path) for path in args.image]
    own = [case(f"your prompt {number}", *images, prompt) for number, prompt in enumerate(args.prompt, start=1)]
    return built_in_cases() + own


def _float_type(args: argparse.Namespace, settings: ServerSettings | None) -> torch.dtype:
    """What the reference computes in: what the server does, or the checkpoint's where the server does not say."""
    name = args.dtype or (settings.float_types["language_model"] if settings else None)
    if name is None:
        from transformers import AutoConfig

        name = str(AutoConfig.from_pretrained(args.checkpoint).dtype).removeprefix("torch.")
    return getattr(torch, name)


def _served_lines(settings: ServerSettings | None, dtype: torch.dtype) -> list[str]:
    if settings is None:
        compared = str(dtype).removeprefix("torch.")
        return [f"  the server does not say what it computes in (start it with --verify); compared in {compared}"]
    types = ", ".join(f"{part.replace('_', ' ')} {name}" for part, name in settings.float_types.items())
    if settings.is_plain_greedy:
        how = "greedy, which is also what is compared"
    else:
        values = ", ".join(f"{name} {value:g}" for name, value in settings.decoding.items()) or "temperature 1"
        how = f"{values}. Such answers vary; compared are greedy ones, without penalties"
    return [f"  {'served float types':<22s}{types}", f"  {'client sets nothing':<22s}{how}"]


def _check_all(
    served: ServedModel, names: list[str], cases: list[VerifyCase], dtype: torch.dtype, args: argparse.Namespace
) -> list[dict]:
    """The checkpoint's own model, and each adapter in its folder."""
    model, processor = load_reference(args.checkpoint, dtype), load_processor(args.checkpoint)
    # Only now, beside the server, is it known what is free.
    needed = model.get_memory_footprint() + GIB
    model.to(
        device_with_room(args.device, needed, "the reference", "start the server with --gpu-memory-utilization 0.5")
    )
    tolerance = Tolerance.of(dtype)
    results = _check(served, cases, Reference(model, processor), args, tolerance)
    for name, folder in adapter_folders(args.checkpoint).items():
        if name not in names:
            print(f"\n{name}: not served at {served.url}, not compared")
            continue
        model.language_model = attach_adapter(model.language_model, folder)
        adapted = ServedModel(served.url, name, served.api_key, decoding=served.decoding)
        results += _check(adapted, cases, Reference(model, processor), args, tolerance)
        if isinstance(model.language_model, PeftModel):
            model.language_model = model.language_model.unload()
    return results


def _check(
    served: ServedModel, cases: list[VerifyCase], reference: Reference, args: argparse.Namespace, tolerance: Tolerance
) -> list[dict]:
    print(f"\n{served.name} at {served.url}")
    return [
        _told(served.name, one.name, result)
        for one in cases
        for result in compare(one, reference, served, tolerance, args.max_tokens)
    ]


def _check_script(
    served: ServedModel, script: list[ScriptCase], processor: QwenVqaProcessor, tolerance: Tolerance
) -> list[dict]:
    print(f"\n{served.name} at {served.url}")
    return [
        _told(served.name, one.case.name, result)
        for one in script
        for result in compare_with_script(one, served, processor, tolerance)
    ]


def _told(model: str, case_name: str, result: StageResult) -> dict:
    word = "equal" if result.equal and result.compared else "not seen" if result.equal else "DIFFERS"
    print(f"  {case_name:<24s}{result.stage:<14s}{word:<10s}{result.detail}", flush=True)
    return {"model": model, "case": case_name, **asdict(result)}


def _conclude(results: list[dict], args: argparse.Namespace, advice: dict[str, str], good: str) -> int:
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    different = [result for result in results if not result["equal"]]
    if not different:
        print(f"\n{good}: {len(results)} comparisons, none differs")
        return 0
    first = different[0]
    print(f"\nthe first difference is in the {first['stage']} ({first['model']}, {first['case']}): {first['detail']}")
    print(f"what to look at: {advice[first['stage']]}")
    return 1


@contextlib.contextmanager
def _server(args: argparse.Namespace) -> Iterator[str]:
    if args.url:
        yield args.url
        return
    arguments = [str(args.checkpoint), "--verify", *(["--dtype", args.dtype] if args.dtype else [])]
    print(f"starting a server: qwen-vqa serve {' '.join(arguments)}", flush=True)
    with started_server(arguments, stdout=subprocess.DEVNULL) as (address, _):
        yield f"{address}/v1"
