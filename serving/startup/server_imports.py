"""All that the server is made of, imported at once: what `serve` does first, and `doctor` the same."""

from importlib import import_module

from qwen_vqa.plugin.errors import UserError, reason_of
from qwen_vqa.serving.startup.platform_check import check_platform

# What .ci/run tests, and tests/vllm_surface compares with the wheels' sources.
TESTED_VLLM = "0.32 and 0.33"


def check_server() -> None:
    """Import the server and build its command line, as `serve` will.

    Raises:
        UserError: it cannot be done with the vLLM that is installed, or there is nothing to run it on.
    """
    try:
        # All names that serving takes from vLLM first: an error then says which of them is missing.
        import_module("qwen_vqa.serving.vllm_server_api")
        check_platform()
        import_module("qwen_vqa.serving.app")
        import_module("qwen_vqa.serving.serve").server_parser()
    except UserError:
        raise
    except Exception as error:  # a name that is gone, a flag that vLLM has too, a broken binary
        raise UserError(
            f"the server cannot be loaded: {type(error).__name__}: {reason_of(error)}. This qwen-vqa was tested with "
            f"vLLM {TESTED_VLLM}, installed is {_installed()}; `make setup` installs one that fits."
        ) from error


def _installed() -> str:
    from vllm import __version__

    return __version__
