"""The jobs of the command line, each a module that is imported only when it is asked for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Subcommand:
    """A subcommand: a module with `build_parser` and `run`, and what `--help` says of it.

    Where the module imports PyTorch, `flags` is another one with `build_parser` and `check`: help, and errors that the
    flags alone show, take no import of it. With `passes_flags_on`, the module's `main` takes the command line as it is.
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
        flags="qwen_vqa.benchmarks.quantisation.quantize_flags",
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
        flags="qwen_vqa.train.demo.demo_flags",
        passes_flags_on=True,
    ),
    "doctor": Subcommand(
        "qwen_vqa.serving.doctor",
        "print versions and what is missing",
        "qwen-vqa doctor",
    ),
}
