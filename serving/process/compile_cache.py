"""Where the engine keeps what torch.compile made, so that a second start finds it."""

import os
from collections.abc import MutableMapping
from pathlib import Path
from tempfile import TemporaryFile, gettempdir

from qwen_vqa.plugin.errors import UserError

AHEAD_OF_TIME = "VLLM_USE_AOT_COMPILE"
KERNELS = "TORCHINDUCTOR_CACHE_DIR"


def keep_kernels(environment: MutableMapping[str, str]) -> str | None:
    """Name vLLM's cache as the place of PyTorch's compiled kernels, which else is /tmp and does not last.

    What the user set stands. PyTorch, once imported, sets the variable itself, in this process or in the one that it
    was inherited from: that is nobody's choice. Where the user's own caches cannot be written, as in a container whose
    user has no home, all libraries' caches move to the folder for temporary files.

    Returns:
        What is to be said, if they moved.

    Raises:
        UserError: there is no folder for temporary files, either.
    """
    note = None
    named = environment.get("XDG_CACHE_HOME") or environment.get("VLLM_CACHE_ROOT") or environment.get(KERNELS)
    caches = Path(environment.get("XDG_CACHE_HOME") or _home_cache())
    if (not named or _is_pytorchs_own(named)) and not is_writable(caches):
        moved = temporary_folder() / f"qwen-vqa-cache-{os.getuid()}"
        if is_writable(moved) and moved.stat().st_uid == os.getuid():  # nobody else's, who could put kernels into it
            note = f"caches are kept in {moved}: {caches} cannot be written (XDG_CACHE_HOME)"
            caches = moved
            environment["XDG_CACHE_HOME"] = str(moved)
    root = Path(environment.get("VLLM_CACHE_ROOT") or Path(caches) / "vllm").expanduser()
    chosen = environment.get(KERNELS)
    if not chosen or _is_pytorchs_own(chosen):
        environment[KERNELS] = str(root / "torch_compile_cache" / "inductor")
    return note


def temporary_folder() -> Path:
    """The folder for temporary files, where vLLM's processes keep the sockets that they talk through.

    Raises:
        UserError: there is none that can be written.
    """
    try:
        return Path(gettempdir())
    except FileNotFoundError as error:
        raise UserError(
            f"no folder for temporary files can be written ({error.strerror}): free space there, or name one that has "
            "some in TMPDIR."
        ) from error


def _home_cache() -> str:
    """~/.cache, also of a user whom the system does not know, for whom Path.home() raises."""
    return os.path.expanduser("~/.cache")  # noqa: PTH111


def is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, which is made if it is not there."""
    try:
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        with TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


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
    return Path(folder).parent == temporary_folder() and Path(folder).name.startswith("torchinductor_")
