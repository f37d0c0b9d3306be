"""Shared memory: the cache of processed images lies in it, and the locks of the server's processes."""

import multiprocessing
import shutil
from argparse import Namespace
from pathlib import Path

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.observability.log import explain, say
from qwen_vqa.serving.process.compile_cache import is_writable

SHARED_MEMORY = Path("/dev/shm")
GIB = 2**30
# A GiB holds 600 images of 384 x 384 in float32.
IMAGE_CACHE_GIB = 1.0
LEAST_IMAGE_CACHE_GIB = 0.1


def choose_image_cache(args: Namespace, shared_memory: Path = SHARED_MEMORY) -> None:
    """Fill in --mm-processor-cache-type and --mm-processor-cache-gb, where the user said nothing.

    Raises:
        UserError: there are no locks without it, or the user wants more than there is, or in shared memory what several
            engines cannot share. A process that writes to shared memory beyond its end is killed by the system.
    """
    _check_locks(shared_memory)
    _choose_type(args)
    asked = args.mm_processor_cache_gb
    if asked is None and args.mm_processor_cache_type == "lru":
        args.mm_processor_cache_gb = IMAGE_CACHE_GIB
        explain(f"cache of processed images: {IMAGE_CACHE_GIB:g} GiB in each process (--mm-processor-cache-gb)")
    elif asked is None:
        args.mm_processor_cache_gb = image_cache_gib(shared_memory)
    elif asked and args.mm_processor_cache_type == "shm":
        free = shutil.disk_usage(shared_memory).free / GIB if is_writable(shared_memory) else 0
        if asked > free:
            raise UserError(
                f"--mm-processor-cache-gb is {asked:g}, and {shared_memory} has {free:.2f} GiB free. Pass less, or 0, "
                "or free it (docker run --shm-size gives more)."
            )


def _choose_type(args: Namespace) -> None:
    """Of vLLM's two caches of processed images the one that holds after a request was refused.

    With one engine that is "shm": with "lru" vLLM believes that the engine has what a refused request brought, and
    answers the next request for that image with 500. With several engines or API processes vLLM sends each image whole,
    whatever the type is; a worker of theirs with "shm" would look for a cache that nobody makes.
    """
    engines = args.data_parallel_size > 1 and not args.data_parallel_external_lb
    several = engines or args.api_servers > 1
    if args.mm_processor_cache_type is None:
        args.mm_processor_cache_type = "lru" if several else "shm"
    elif several and args.mm_processor_cache_type == "shm":
        raise UserError(
            f"--mm-processor-cache-type shm: the {args.data_parallel_size} engines of --data-parallel-size and the "
            f"{args.api_servers} processes of --api-servers cannot share it. Leave it out."
        )


def image_cache_gib(shared_memory: Path = SHARED_MEMORY) -> float:
    """At most half of what is free, which in a container may be little; 0 where that is too little."""
    if not is_writable(shared_memory):
        say(f"no cache of processed images: {shared_memory} cannot be written")
        return 0
    free = shutil.disk_usage(shared_memory).free / GIB
    size = min(IMAGE_CACHE_GIB, free / 2)
    if size < LEAST_IMAGE_CACHE_GIB:
        say(f"no cache of processed images: {shared_memory} has {free:.2f} GiB free (docker run --shm-size gives more)")
        return 0
    explain(
        f"cache of processed images: {size:.2g} GiB of shared memory, {free:.2g} are free (--mm-processor-cache-gb)"
    )
    return size


def _check_locks(shared_memory: Path) -> None:
    try:
        multiprocessing.get_context("spawn").Event()  # as vLLM's processes have them
    except OSError as error:
        raise UserError(
            f"{shared_memory} cannot be used ({error.strerror}), and the server's processes need some of it for "
            "their locks. Free some, or give the container one of its own (docker run --shm-size 1g; in Kubernetes an "
            "emptyDir with medium: Memory)."
        ) from error
