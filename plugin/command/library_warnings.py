"""Warnings of libraries in which there is nothing that the user could change."""

import logging
import os


def quiet_libraries() -> None:
    """Keep them out of every command; before vLLM is imported, whose log is not set up when it gives the second.

    bitsandbytes asks for a package from a hub and tells of each cast to float16; vLLM tells of a Triton without a CPU
    backend; PyTorch 2.14 tells that vLLM 0.33 uses names that it calls otherwise now. VLLM_LOGGING_LEVEL shows the
    last two again.
    """
    bitsandbytes = logging.getLogger("bitsandbytes")
    if bitsandbytes.level == logging.NOTSET:
        bitsandbytes.setLevel(logging.ERROR)
    if os.environ.get("VLLM_LOGGING_LEVEL", "ERROR") == "ERROR":
        for name in ("vllm.triton_utils.importing", "torch._opaque_base", "torch._library.opaque_object"):
            logging.getLogger(name).setLevel(logging.ERROR)
