"""What is compiled at the first start is there at the second, where the user wants it."""

import contextlib
import os
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from qwen_vqa.serving.process.compile_cache import choose_compile_cache, keep_kernels
from qwen_vqa.train.verify.local_server import free_port, started_server
from tests.namespaces import may_unshare
from tests.server import SERVE
from tests.tiny import DEMO


def test_kernels_are_kept_in_vllms_cache():
    chosen = {"VLLM_CACHE_ROOT": "/caches/vllm", "XDG_CACHE_HOME": "/home/caches"}
    keep_kernels(chosen)
    assert chosen["TORCHINDUCTOR_CACHE_DIR"] == "/caches/vllm/torch_compile_cache/inductor"
    chosen = {"XDG_CACHE_HOME": "/home/caches"}
    keep_kernels(chosen)
    assert chosen["TORCHINDUCTOR_CACHE_DIR"] == "/home/caches/vllm/torch_compile_cache/inductor"


def test_what_pytorch_set_in_the_process_that_started_the_server_is_no_choice():
    """A benchmark that has imported PyTorch hands it on."""
    inherited = {"VLLM_CACHE_ROOT": "/caches/vllm", "TORCHINDUCTOR_CACHE_DIR": default_cache_dir()}
    keep_kernels(inherited)
    assert inherited["TORCHINDUCTOR_CACHE_DIR"] == "/caches/vllm/torch_compile_cache/inductor"


def test_what_the_user_chose_stands(tmp_path: Path):
    theirs = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "theirs"), "VLLM_CACHE_ROOT": str(tmp_path)}
    before = dict(theirs)
    keep_kernels(theirs)
    assert f"find it in {tmp_path / 'theirs'}" in choose_compile_cache(theirs)
    assert theirs == {**before, "VLLM_USE_AOT_COMPILE": "0"}
    ahead = {"VLLM_USE_AOT_COMPILE": "1"}
    assert "find it" not in choose_compile_cache(ahead)
    assert ahead == {"VLLM_USE_AOT_COMPILE": "1"}


def test_a_place_that_cannot_be_written_is_said_and_left_to_pytorch(tmp_path: Path):
    (tmp_path / "file").touch()
    chosen = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "file" / "cache")}
    assert f"{tmp_path / 'file' / 'cache'} cannot be written: Not a directory" in choose_compile_cache(chosen)
    assert "TORCHINDUCTOR_CACHE_DIR" not in chosen


@pytest.mark.cpu
def test_a_second_start_compiles_nothing(tiny_checkpoint: Path, tmp_path: Path):
    """vLLM's own cache would be written, but cannot be read again."""
    surroundings = {**os.environ, "VLLM_CACHE_ROOT": str(tmp_path), "VLLM_LOGGING_LEVEL": "INFO"}
    compiled: list[set[Path]] = []
    for start in ("first", "second"):
        log = tmp_path / f"{start}.log"
        with (
            log.open("w") as output,
            started_server([str(tiny_checkpoint), "--max-model-len", "512"], output, output, surroundings),
        ):
            pass
        assert "Compiling model again" not in log.read_text()
        compiled.append(set((tmp_path / "torch_compile_cache" / "inductor").glob("**/*.so")))
    first, second = compiled
    assert first and second == first


@pytest.mark.cpu
def test_a_user_without_a_home_is_served_too(tiny_checkpoint: Path, tmp_path: Path):
    """As in a container that runs under a number: no folder can be made in what is called the home."""
    kept = ("XDG_CACHE_HOME", "VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in kept}
    environment |= {"HOME": "/dev/null", "TMPDIR": str(tmp_path)}
    log = tmp_path / "log"
    with log.open("w") as output:
        arguments = [str(tiny_checkpoint), "--enforce-eager"]
        with started_server(arguments, stdout=output, stderr=output, environment=environment) as (address, _):
            assert httpx.get(f"{address}/v1/models").status_code == 200
    moved = tmp_path / f"qwen-vqa-cache-{os.getuid()}"
    assert f"caches are kept in {moved}: /dev/null/.cache cannot be written" in log.read_text()
    assert moved.stat().st_mode & 0o777 == 0o700


# In a mount namespace of its own: all file systems read-only, but for small ones at TMPDIR and /dev/shm; then as a
# number that the system does not know. Arguments: TMPDIR, the sizes of both, whether TMPDIR is to be full, a command.
CONTAINER = """
mount --make-rprivate /
for place in $(findmnt --raw --noheadings --output TARGET); do
  case $place in /proc*|/sys*|/dev*) ;; *) mount -o remount,bind,ro "$place" 2>/dev/null ;; esac
done
mount -t tmpfs -o mode=1777,size=$2 tmpfs $1 && mount -t tmpfs -o mode=1777,size=$3 tmpfs /dev/shm || exit 90
[ -z "$4" ] || dd if=/dev/zero of=$1/full bs=1M 2>/dev/null
export TMPDIR=$1
cd / && shift 4
exec unshare --user --map-user=54321 --map-group=54321 env -i PATH=/usr/bin:/bin TMPDIR=$TMPDIR "$@"
"""
NAMESPACES = ("--user", "--map-root-user", "--mount")
needs_namespaces = pytest.mark.skipif(not may_unshare(*NAMESPACES), reason="user namespaces are not allowed here")


def in_a_container(folder: Path, size: str, fill: str, *command: str) -> subprocess.Popen[str]:
    """The command as user 54321 in such a system, with `folder` for temporary files."""
    shell = ["unshare", *NAMESPACES, "bash", "-c", CONTAINER, "container", str(folder), size, "1g", fill]
    return subprocess.Popen([*shell, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@needs_namespaces
def test_an_unknown_user_of_a_read_only_system_is_served(tmp_path: Path):
    script = "touch /usr/x /tmp/x /var/tmp/x 2>/dev/null || id -u"
    assert in_a_container(tmp_path, "1m", "", "sh", "-c", script).communicate()[0].strip() == "54321"
    port = free_port()
    server = in_a_container(tmp_path, "200m", "", *SERVE, str(DEMO), "--enforce-eager", "--port", str(port))
    try:
        deadline = time.monotonic() + 300
        while server.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                models = httpx.get(f"http://localhost:{port}/v1/models")
                if models.status_code == 200:
                    break
            time.sleep(0.5)
        hello = [{"role": "user", "content": "Hello!"}]
        question = {"model": models.json()["data"][0]["id"], "messages": hello, "max_tokens": 12}
        reply = httpx.post(f"http://localhost:{port}/v1/chat/completions", json=question, timeout=60)
        assert "Ask me about a picture" in reply.text
    finally:
        server.terminate()
        said = server.communicate(timeout=60)[0]
    assert f"caches are kept in {tmp_path}/qwen-vqa-cache-54321" in said and "Traceback" not in said


@needs_namespaces
def test_a_full_folder_for_temporary_files_is_named(tmp_path: Path):
    server = in_a_container(tmp_path, "1m", "full", *SERVE, str(DEMO))
    said = server.communicate(timeout=120)[0]
    assert server.returncode == 2 and "TMPDIR" in said and "Traceback" not in said, said
