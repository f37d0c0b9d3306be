"""vLLM's parser, with errors as the other commands have them."""

from typing import NoReturn

from qwen_vqa.plugin.command.command_parser import mistake
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.vllm_server_api import FlexibleArgumentParser


class ServeParser(FlexibleArgumentParser):
    """Of `qwen-vqa serve`. vLLM's own prints its usage first, which has 250 lines."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError: what is wrong, and the flag that was probably meant."""
        words = message.split() if message.startswith("unrecognized") else []
        where = "`qwen-vqa serve --help` lists the flags, `--help=all` vLLM's, too."
        raise UserError(f"{mistake(self, message, words)} {where}")
