"""Part B: the product's commands, as a user types them, where vLLM is installed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from qwen_vqa.benchmarks.gpu_check.check_row import CheckSetting, NotPossible, check, checkpoint_of
from qwen_vqa.serving import DEMO_CHECKPOINT

COMMAND = [sys.executable, "-m", "qwen_vqa.serving.cli"]
REQUESTS_A_USER = 4


def verify(setting: CheckSetting) -> dict[str, Any]:
    """`qwen-vqa verify` of the demo and its adapter."""
    setting.needs("vllm")
    return _verified(setting, DEMO_CHECKPOINT)


def quantised(setting: CheckSetting, scheme: str) -> dict[str, Any]:
    """`qwen-vqa quantize` of the demo, and a question to a server of it."""
    setting.needs("vllm")
    from qwen_vqa.plugin.quantization import FACTS, why_not_served_here

    if reason := why_not_served_here(FACTS[scheme]):
        raise NotPossible(reason)
    folder = setting.folder / scheme
    few = ["--samples", "32", "--iterations", "20"] if FACTS[scheme].name == "int4" else []
    _run("quantize", str(DEMO_CHECKPOINT), "--scheme", scheme, "-o", str(folder), *few)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return {"MiB": size / 2**20} | _load(setting, folder, 1)


def load(setting: CheckSetting, users: int) -> dict[str, Any]:
    """`qwen-vqa load` against a server of the shape's checkpoint."""
    setting.needs("vllm")
    return _load(setting, checkpoint_of(setting), users, "--max-model-len", "2048")


def second_question(setting: CheckSetting) -> dict[str, Any]:
    """TTFT of a second question about the same picture beside the first one's, by comparison/second_question.py."""
    setting.needs("vllm")
    from qwen_vqa.train.verify.local_server import started_server

    file = setting.folder / "second.json"
    with started_server([str(DEMO_CHECKPOINT)], stdout=subprocess.DEVNULL) as (address, _):
        words = ["-m", "qwen_vqa.benchmarks.comparison.second_question", "--url", f"{address}/v1", "--json", str(file)]
        _checked([sys.executable, *words])
    found = json.loads(file.read_text())
    return {name: found[name] for name in ("first_ms", "second_ms", "ratio", "cached_tokens")}


def _verified(setting: CheckSetting, folder: Path) -> dict[str, Any]:
    file = setting.folder / "verify.json"
    _run("verify", str(folder), "--json", str(file))
    results = json.loads(file.read_text())
    check(all(result["equal"] for result in results), "something differs")
    return {"comparisons": len(results)}


def _load(setting: CheckSetting, folder: Path, users: int, *flags: str) -> dict[str, Any]:
    from qwen_vqa.train.verify.local_server import started_server

    file = setting.folder / "load.json"
    with started_server([str(folder), *flags], stdout=subprocess.DEVNULL) as (address, _):
        words = ["load", "--url", f"{address}/v1", "--concurrency", str(users), "--output-tokens", "64"]
        _run(*words, "--requests", str(REQUESTS_A_USER * users), "--json", str(file))
    summary = json.loads(file.read_text())["cells"][0]["summary"]
    check(not summary["failed"], f"{summary['failed']} requests failed")
    names = {"requests/s": "requests_per_second", "output tokens/s": "output_tokens_per_second"}
    return {name: summary.get(key) for name, key in names.items()} | {"TTFT p50 ms": summary["ttft"]["p50"]}


def _run(*words: str) -> None:
    _checked([*COMMAND, *words])


def _checked(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    check(done.returncode == 0, f"{' '.join(command[2:5])} ended with {done.returncode}: {' '.join(lines[-2:])}")
