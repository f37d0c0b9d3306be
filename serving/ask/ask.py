"""`qwen-vqa ask`: one question to a running server, or, without one, as many as you like.

qwen-vqa ask "What number is written here?" picture.png
qwen-vqa ask before.png after.png "What has changed?"
cat picture.png | qwen-vqa ask "What is this?" -
qwen-vqa ask picture.png                                   each line is a question; the server is told the earlier ones
"""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from qwen_vqa.plugin.command.command_parser import CommandParser
from qwen_vqa.plugin.command.server_address import EXAMPLE, server_url
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.ask.words import Asked, asked

if TYPE_CHECKING:
    from qwen_vqa.serving.ask.dialogue import Dialogue

URL_VARIABLE, KEY_VARIABLE = "OPENAI_BASE_URL", "OPENAI_API_KEY"


def main(argv: list[str]) -> int:
    """Ask, and print the answer as it comes.

    Raises:
        UserError: what is wrong with the words, or what the server says is.
    """
    # A parser of its own: only so may pictures stand behind flags.
    parser = CommandParser(
        prog="qwen-vqa ask",
        description="Ask a running server a question about pictures, in the terminal.",
        epilog="example: qwen-vqa ask 'What number is written here?' picture.png",
    )
    return _run(build_parser(parser).parse_intermixed_args(argv))


def build_parser(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The flags of `qwen-vqa ask`."""
    add = parser.add_argument
    add(
        "words",
        nargs="*",
        metavar="QUESTION|PICTURE",
        help="one question, in quotes, and pictures (files, web addresses), in any order; - is standard input, a "
        "picture or the question. Without a question, each line that you type is one",
    )
    add("--url", help=f"the server's address, with /v1 (default: ${URL_VARIABLE}, or {EXAMPLE})")
    add("--model", metavar="NAME", help="model or adapter (default: the first that the server lists)")
    add("--api-key", help=f"a key of that server (default: ${KEY_VARIABLE})")
    add("--system", metavar="TEXT", help="system prompt (default: the checkpoint's own)")
    add("--temperature", type=float, help="(default: the server's; 0 for the likeliest words)")
    add("--max-tokens", type=int, help="of an answer (default: as many as the server allows)")
    add("--timeout", type=float, default=300, help="seconds to wait for the server (default: %(default)s)")
    return parser


def _run(args: argparse.Namespace) -> int:
    url = server_url(args.url or os.environ.get(URL_VARIABLE) or EXAMPLE)
    for name in ("max_tokens", "timeout"):
        if getattr(args, name) is not None and getattr(args, name) <= 0:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be greater than 0.")
    first = asked(args.words, lambda: sys.stdin.buffer.read())
    # Now, for it takes a while.
    from qwen_vqa.serving.ask.dialogue import Dialogue

    key = args.api_key or os.environ.get(KEY_VARIABLE) or "none"
    options = {"temperature": args.temperature, "max_tokens": args.max_tokens}
    given = {name: value for name, value in options.items() if value is not None}
    dialogue = Dialogue(url, key, args.model, args.system, args.timeout, given)
    if first.question is not None:
        dialogue.ask(first, _show)
        return 0
    return _converse(dialogue, first)


def _converse(dialogue: "Dialogue", pictures: Asked) -> int:
    """A question a line, until the end of standard input (Ctrl-D in a terminal)."""
    typed = sys.stdin.isatty()
    if typed:
        import readline  # noqa: F401 - what is typed can be edited, and called back

        print(f"talking to {dialogue.model}; the next picture: /picture FILE, anew: /new, end: Ctrl-D")
    waiting = pictures
    while True:
        try:
            line = (input("> ") if typed else next(sys.stdin)).strip()
        except (EOFError, StopIteration):
            return 0
        try:
            if line == "/new":
                dialogue.forget()
            elif line.startswith("/picture "):
                waiting = waiting.with_picture(line.removeprefix("/picture ").strip())
            elif line:
                dialogue.ask(waiting.with_question(line), _show)
                waiting = Asked()
        except UserError as error:
            if not typed:
                raise
            print(f"qwen-vqa: {error}", file=sys.stderr)
        except KeyboardInterrupt:  # of the answer, not of the conversation
            if not typed:
                raise
            print()


def _show(piece: str) -> None:
    print(piece, end="", flush=True)
