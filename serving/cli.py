"""The command line: `qwen-vqa JOB`, one job a subcommand, each imported only when it is asked for."""

import argparse
import sys
from dataclasses import dataclass
from importlib import import_module

from qwen_vqa.plugin.errors import INTERRUPTED, UserError
from qwen_vqa.plugin.library_warnings import quiet_libraries


@dataclass(frozen=True)
class Subcommand:
    """A subcommand: a module with `build_parser` and `run`, and what `--help` says of it.

    Where the module imports PyTorch, `flags` is another one with `build_parser` and `check`: help, and errors that the
    flags alone show, take no import of it. With `passes_flags_on`, the module takes the command line as it is.
    """

    module: str
    help: str
    example: str
    flags: str | None = None
    passes_flags_on: bool = False


JOBS = {
    "serve": Subcommand(
        "qwen_vqa.serving.serve",
        "serve a checkpoint behind the OpenAI API",
        "qwen-vqa serve my-model --port 8000",
        passes_flags_on=True,
    ),
    "chat": Subcommand(
        "qwen_vqa.serving.chat.chat",
        "open a page in the browser to talk to a server",
        "qwen-vqa chat --url http://localhost:8000/v1",
    ),
    "ask": Subcommand(
        "qwen_vqa.serving.ask.ask",
        "ask a running server a question about pictures, in the terminal",
        "qwen-vqa ask 'What number is written here?' picture.png",
        passes_flags_on=True,
    ),
    "assemble": Subcommand(
        "qwen_vqa.train.assembly.assemble",
        "turn an encoder, a connector, a language model and a LoRA into a checkpoint",
        "qwen-vqa assemble --vision-encoder google/vit-base-patch32-384 --language-model Qwen/Qwen2.5-3B-Instruct "
        "--connector final_connector.pth --adapter final_lora_model --like original -o my-model",
        flags="qwen_vqa.train.assembly.assemble_flags",
    ),
    "train": Subcommand(
        "qwen_vqa.train.train",
        "train connector and LoRA on conversations about images",
        "qwen-vqa train base --data llava=llava_instruct_150k.json,images=coco/train2017 -o runs/mine",
        flags="qwen_vqa.train.train_flags",
    ),
    "evaluate": Subcommand(
        "qwen_vqa.train.evaluation.evaluate",
        "score the answers of a checkpoint or a server: VQA accuracy, ANLS, exact match, also blind",
        "qwen-vqa evaluate --url http://localhost:8000/v1 --data vizwiz=Annotations/val.json,images=val -o results",
        flags="qwen_vqa.train.evaluation.evaluate_flags",
    ),
    "quantize": Subcommand(
        "qwen_vqa.benchmarks.quantisation.quantize_command",
        "turn a checkpoint into 8 or 4 bits, and measure what that costs",
        "qwen-vqa quantize my-model --scheme int8 -o my-model-int8",
        passes_flags_on=True,
    ),
    "verify": Subcommand(
        "qwen_vqa.train.verify.verify",
        "show that the served model is the trained one, or where it first differs",
        "qwen-vqa verify my-model --url http://localhost:8000/v1",
        flags="qwen_vqa.train.verify.verify_flags",
    ),
    "load": Subcommand(
        "qwen_vqa.benchmarks.load",
        "measure what a server does for many people at once",
        "qwen-vqa load --url http://localhost:8000/v1 --concurrency 1,8,32 --requests 200 --html out.html",
    ),
    "demo-train": Subcommand(
        "qwen_vqa.train.demo.__main__",
        "train the bundled demo model from nothing",
        "qwen-vqa demo-train --out runs/demo",
        passes_flags_on=True,
    ),
    "doctor": Subcommand(
        "qwen_vqa.serving.doctor",
        "print versions and what is missing",
        "qwen-vqa doctor",
    ),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 a job's own negative result, 2 bad input, 130 Ctrl-C."""
    arguments = sys.argv[1:] if argv is None else argv
    quiet_libraries()
    try:
        if arguments and arguments[0] in JOBS and JOBS[arguments[0]].passes_flags_on:
            return import_module(JOBS[arguments[0]].module).main(arguments[1:])
        args = _parser(arguments).parse_args(arguments)
        job = JOBS[args.job]
        if job.flags:
            import_module(job.flags).check(args)
        return import_module(job.module).run(args)
    except UserError as error:
        print(f"qwen-vqa: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # where a job has nothing to add
        print("\nqwen-vqa: interrupted", file=sys.stderr)
        return INTERRUPTED


def _parser(arguments: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qwen-vqa", description="Train, check and serve a LLaVA-style vision-language model."
    )
    jobs = parser.add_subparsers(dest="job", required=True, metavar="JOB")
    for name, job in JOBS.items():
        subparser = jobs.add_parser(
            name,
            help=job.help,
            description=job.help,
            epilog=f"example: {job.example}",
        )
        if name in arguments[:1] and not job.passes_flags_on:
            import_module(job.flags or job.module).build_parser(subparser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
