"""Where the engine keeps what torch.compile made, so that a second start finds it."""

from collections.abc import MutableMapping
from pathlib import Path
from tempfile import TemporaryFile, gettempdir

AHEAD_OF_TIME = "VLLM_USE_AOT_COMPILE"
KERNELS = "TORCHINDUCTOR_CACHE_DIR"


def keep_kernels(environment: MutableMapping[str, str]) -> None:
    """Name vLLM's cache as the place of PyTorch's compiled kernels, which else is /tmp and does not last.

    What the user set stands. PyTorch, once imported, sets the variable itself, in this process or in the one that it
    was inherited from: that is nobody's choice.
    """
    caches = environment.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = Path(environment.get("VLLM_CACHE_ROOT") or Path(caches) / "vllm").expanduser()
    chosen = environment.get(KERNELS)
    if not chosen or _is_pytorchs_own(chosen):
        environment[KERNELS] = str(root / "torch_compile_cache" / "inductor")


def choose_compile_cache(environment: MutableMapping[str, str]) -> str:
    """Choose, on a CPU, PyTorch's cache before vLLM's, in variables that the engine inherits; returns what is to be
    said.

    vLLM keeps whole graphs, compiled ahead of time, but on a CPU, whose compiler is PyTorch's own, vLLM 0.32 cannot
    read them again ("'function' object has no attribute 'finalize_loading'", also in its issue 45447): each start
    would compile anew. PyTorch's kernels are found again.
    """
    if environment.setdefault(AHEAD_OF_TIME, "0") != "0":
        return "faster answers after a longer start"
    kept = environment[KERNELS]
    try:
        Path(kept).mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=kept):
            pass
    except OSError as error:
        del environment[KERNELS]
        return f"faster answers after a longer start ({kept} cannot be written: {error.strerror})"
    return f"the first start compiles, later ones find it in {kept}"


def _is_pytorchs_own(folder: str) -> bool:
    """/tmp/torchinductor_NAME, as torch/_inductor/runtime/cache_dir_utils.py has it."""
    return Path(folder).parent == Path(gettempdir()) and Path(folder).name.startswith("torchinductor_")
