"""The command line: `qwen-vqa JOB`, one job a subcommand, each imported only when it is asked for."""

# PYTHON_ARGCOMPLETE_OK
import argparse
import os
import sys
from importlib import import_module
from importlib.metadata import version

from qwen_vqa.plugin.command.command_parser import CommandParser, question, similar
from qwen_vqa.plugin.command.library_warnings import quiet_libraries
from qwen_vqa.plugin.errors import INTERRUPTED, UserError
from qwen_vqa.serving.jobs import JOBS

COMPLETING = "_ARGCOMPLETE"  # what the shell sets that asks argcomplete


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 a job's own negative result, 2 bad input, 130 Ctrl-C."""
    arguments = sys.argv[1:] if argv is None else argv
    quiet_libraries()
    if COMPLETING in os.environ:
        from qwen_vqa.serving.completion import complete

        complete()
    try:
        if not arguments or arguments[0] not in JOBS:
            return _without_a_job(arguments)
        job = JOBS[arguments[0]]
        if job.passes_flags_on:
            return import_module(job.module).main(arguments[1:])
        args = job_parser(arguments[0]).parse_args(arguments[1:])
        if job.flags:
            import_module(job.flags).check(args)
        return import_module(job.module).run(args)
    except UserError as error:
        print(f"qwen-vqa: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # where a job has nothing to add
        print("\nqwen-vqa: interrupted", file=sys.stderr)
        return INTERRUPTED


def job_parser(name: str) -> CommandParser:
    """The parser of a job that does not pass its flags on."""
    job = JOBS[name]
    parser = CommandParser(prog=f"qwen-vqa {name}", description=job.help, epilog=f"example: {job.example}")
    import_module(job.flags or job.module).build_parser(parser)
    return parser


def _without_a_job(arguments: list[str]) -> int:
    """--help and --version; everything else is a mistake.

    Raises:
        UserError: no job, or one that there is not.
    """
    width = max(map(len, JOBS))
    parser = CommandParser(
        prog="qwen-vqa",
        usage="qwen-vqa JOB ...",
        description="Train, check and serve a LLaVA-style vision-language model.",
        epilog="jobs:\n"
        + "\n".join(f"  {name:<{width}}  {job.help}" for name, job in JOBS.items())
        + "\n\n`qwen-vqa JOB --help` lists a job's flags. Without a model of your own: qwen-vqa serve",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"qwen-vqa {version('qwen-vqa')}")
    parser.add_argument("job", nargs="?", help=argparse.SUPPRESS)
    args, others = parser.parse_known_args(arguments)
    if args.job is None and not arguments:
        parser.print_help()
        return 2
    if args.job is None:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    there = f"There are: {', '.join(JOBS)}."
    raise UserError(f"there is no job {args.job!r}.{question(similar(args.job, JOBS))} {there}")


if __name__ == "__main__":
    sys.exit(main())
