"""What the shell completes: jobs, their flags and their choices, by argcomplete.

eval "$(register-python-argcomplete qwen-vqa)"       bash; zsh, after `autoload -U bashcompinit && bashcompinit`
"""

import argparse
import os
import re
from importlib import import_module

import argcomplete
from argcomplete.completers import FilesCompleter

from qwen_vqa.serving.jobs import JOBS
from qwen_vqa.serving.startup.serve_help import HELP


def complete() -> None:
    """Answer the shell and end the program."""
    parser = argparse.ArgumentParser(prog="qwen-vqa")
    parser.add_argument("--version", action="store_true")
    jobs = parser.add_subparsers(dest="job")
    typed = os.environ["COMP_LINE"].split()[1:2]
    for name, job in JOBS.items():
        made = jobs.add_parser(name, help=job.help)
        if [name] != typed:  # another job's flags take imports, and are not asked for
            continue
        if name == "serve":
            _add_flags_of_serve(made)
        else:
            import_module(job.flags or job.module).build_parser(made)
    argcomplete.autocomplete(parser, default_completer=FilesCompleter())


def _add_flags_of_serve(parser: argparse.ArgumentParser) -> None:
    """Those of its help: its own parser is vLLM's, which takes seconds to import."""
    parser.add_argument("checkpoint", nargs="?")
    for flag in dict.fromkeys(re.findall(r"^  (?:-\w, )?(--[\w-]+)", HELP, re.MULTILINE)):
        if flag != "--help":
            parser.add_argument(flag)
