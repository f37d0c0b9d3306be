"""Warnings of libraries in which there is nothing that the user could change."""

import logging
import os


def quiet_libraries() -> None:
    """Keep them out of every command; before vLLM is imported, whose log is not set up when it gives the second.

    bitsandbytes asks for a package from a hub and tells of each cast to float16; vLLM tells of a Triton without a CPU
    backend, which VLLM_LOGGING_LEVEL shows again.
    """
    bitsandbytes = logging.getLogger("bitsandbytes")
    if bitsandbytes.level == logging.NOTSET:
        bitsandbytes.setLevel(logging.ERROR)
    if os.environ.get("VLLM_LOGGING_LEVEL", "ERROR") == "ERROR":
        logging.getLogger("vllm.triton_utils.importing").setLevel(logging.ERROR)
