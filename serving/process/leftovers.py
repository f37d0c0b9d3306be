"""What a server leaves when it is killed, shared memory above all, and its end at the next start.

Everything has the server's name, which is made up at its start: the folder where its processes keep temporary files and
sockets, and its shared memory. Beside both lies a file that the server holds a lock on. The system lets go of the lock
when the server is gone, however it went, and whoever gets the lock removes what has that name. So nothing of another
server that lives is touched, whoever started it and in whatever container.
"""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, MutableMapping
from pathlib import Path

from qwen_vqa.plugin.vllm_model.shared_memory_names import SERVER_NAME, queue_prefix
from qwen_vqa.serving.observability.log import say

SHARED_MEMORY = Path("/dev/shm")
# vLLM's names: of its cache of processed images, and of the folder of its sockets.
SHARED_MEMORY_NAME = "VLLM_OBJECT_STORAGE_SHM_BUFFER_NAME"
SOCKETS = "VLLM_RPC_BASE_PATH"
_LOCK = re.compile(r"qwen-vqa-([0-9a-f]{8})\.lock")
# A Unix socket's path has at most 107 bytes; vLLM's sockets are named by 36 characters.
_LONGEST_FOLDER = 107 - 36 - 1


@contextlib.contextmanager
def own_name(environment: MutableMapping[str, str], shared_memory: Path = SHARED_MEMORY) -> Iterator[None]:
    """Remove what dead servers left, and have what is made from here on be ours; it is removed at the end.

    Args:
        environment: of the server's processes; it is told the names.
    """
    places = [shared_memory]
    with contextlib.suppress(FileNotFoundError):  # no folder for temporary files: vLLM will say what it misses
        places.append(Path(tempfile.gettempdir()))
    for place in places:
        remove_leftovers(place)
    name = secrets.token_hex(4)
    locks = []
    for place in places:
        with contextlib.suppress(OSError):  # it cannot be written, or has no locks: nothing of ours will be there
            locks.append(_lock(place, name))
            if place != shared_memory:
                _folder(place, name).mkdir(mode=0o700)
    environment[SERVER_NAME] = name
    try:
        yield
    finally:
        for place in places:
            _remove(place, name)
        for lock in locks:
            os.close(lock)


def use_own_name(environment: MutableMapping[str, str]) -> None:
    """In the server's process, before it starts others: what they make has the name that `own_name` made up."""
    name = environment.get(SERVER_NAME)
    if name is None:
        return
    # Each start's own: what a killed engine left is still there when the next one starts.
    environment.setdefault(SHARED_MEMORY_NAME, f"vllm_mm_{name}_{os.getpid()}")
    place = Path(tempfile.gettempdir())
    folder = _folder(place, name)
    if not folder.is_dir():
        return
    if len(os.fsencode(folder)) > _LONGEST_FOLDER:
        environment.setdefault(SOCKETS, str(place))
    environment["TMPDIR"] = tempfile.tempdir = str(folder)


def remove_leftovers(place: Path) -> None:
    """Remove what servers that are dead left in a folder."""
    with contextlib.suppress(OSError):
        for path in sorted(place.iterdir()):
            if match := _LOCK.fullmatch(path.name):
                _remove_if_dead(place, match[1])


def _remove_if_dead(place: Path, name: str) -> None:
    try:
        lock = os.open(_lock_path(place, name), os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return  # another user's
    try:
        if os.fstat(lock).st_uid == os.getuid():
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if size := _remove(place, name):
                say(f"removed {size / 2**20:,.0f} MiB that a killed server left in {place}")
    except OSError:
        return  # it lives
    finally:
        os.close(lock)


def _lock(place: Path, name: str) -> int:
    """Make the lock's file; nobody sees it before it is held."""
    made = place / f"qwen-vqa-{name}.new"
    lock = os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        made.rename(_lock_path(place, name))
    except OSError:
        os.close(lock)
        made.unlink(missing_ok=True)
        raise
    return lock


def _remove(place: Path, name: str) -> int:
    """Remove what has a name, its lock last; returns the bytes that were freed."""
    size = 0
    for path in (*place.glob(f"vllm_mm_{name}*"), *place.glob(f"{queue_prefix(name)}*"), _folder(place, name)):
        with contextlib.suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                size += path.lstat().st_blocks * 512
                path.unlink()
    with contextlib.suppress(OSError):
        _lock_path(place, name).unlink()
    return size


def _folder(place: Path, name: str) -> Path:
    return place / f"qwen-vqa-{name}"


def _lock_path(place: Path, name: str) -> Path:
    return place / f"qwen-vqa-{name}.lock"
