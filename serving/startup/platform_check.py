"""Is there a GPU, and a driver, that the installed build of vLLM can use? Asked before what dies without one."""

import subprocess
import sys

import torch

from qwen_vqa.plugin.errors import UserError


def check_platform() -> None:
    """Look at what vLLM found to compute on.

    Raises:
        UserError: nothing, or a GPU whose driver is too old for this build; and what to do.
    """
    from qwen_vqa.serving.vllm_server_api import current_platform

    if not current_platform.device_type:
        raise UserError(
            "this build of vLLM is for GPUs, and none is seen here. `nvidia-smi` has to list one (in a container: "
            "docker run --gpus all). To serve without a GPU: `make clean setup EXTRA=cpu`."
        )
    if current_platform.is_cuda() and too_old(driver_cuda(), torch.version.cuda) and (error := _cuda_error()):
        raise UserError(
            f"the GPU's driver is for CUDA {driver_cuda()}, and PyTorch was built for {torch.version.cuda}: {error} "
            f"Update the driver to one for CUDA {torch.version.cuda} or newer; `nvidia-smi` shows which it is."
        )


def driver_cuda() -> str | None:
    """The CUDA version of the driver, such as 12.8, without starting CUDA; None where it cannot be asked."""
    from qwen_vqa.serving.vllm_server_api import import_pynvml

    nvml = import_pynvml()
    try:
        nvml.nvmlInit()
        version = nvml.nvmlSystemGetCudaDriverVersion()
        nvml.nvmlShutdown()
    except nvml.NVMLError:
        return None
    return f"{version // 1000}.{version % 1000 // 10}"


def too_old(driver: str | None, built_for: str | None) -> bool:
    """Whether a driver may not run a build: it runs all minor versions of its own major one.

    Sources: CUDA's "minor version compatibility"; that with a compatibility package older drivers do, too, is why CUDA
    itself is asked then.
    """
    if driver is None or built_for is None:
        return False
    return int(driver.split(".")[0]) < int(built_for.split(".")[0])


def _cuda_error() -> str | None:
    """What PyTorch says when it starts CUDA; in a process of its own, since servers are forked from this one."""
    code = "import torch; torch.cuda.init()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return run.stderr.strip().splitlines()[-1] if run.returncode else None
