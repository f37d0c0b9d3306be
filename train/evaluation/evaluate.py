"""`qwen-vqa evaluate`: how well a checkpoint or a server answers, and what it would score blind.

qwen-vqa evaluate my-model --data textvqa=TextVQA_0.5.1_val.json,images=train_images,samples=500 -o results
qwen-vqa evaluate --url http://localhost:8000/v1 --data vizwiz=Annotations/val.json,images=val -o results
"""

import argparse
import os
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any, Protocol

import torch
from tqdm import tqdm

from qwen_vqa.plugin.checkpoint_files import adapter_folders
from qwen_vqa.plugin.errors import INTERRUPTED, UserError
from qwen_vqa.train.data.source import DataSource
from qwen_vqa.train.evaluation.checkpoint_model import CheckpointModel
from qwen_vqa.train.evaluation.evaluate_flags import BASELINES, PAGE_FILE, RESULTS_FILE
from qwen_vqa.train.evaluation.metric_rules import RULES, MetricRules
from qwen_vqa.train.evaluation.page import write_page
from qwen_vqa.train.evaluation.questions import (
    NONE,
    OTHER,
    OWN,
    Prompt,
    Question,
    TooFewPicturesError,
    prompts,
    read_questions,
)
from qwen_vqa.train.evaluation.replies import Record, Reply
from qwen_vqa.train.evaluation.results import Results
from qwen_vqa.train.evaluation.scoring import Scored
from qwen_vqa.train.evaluation.server_model import ServerModel

CONDITIONS = dict(zip(BASELINES, (NONE, OTHER), strict=True))


class Model(Protocol):
    """What can be asked: a checkpoint or a server."""

    def ask(self, prompts: Sequence[Prompt], record: Record) -> None: ...


def evaluate(
    model: Model, asked: Sequence[Prompt], results: Results, show: Callable[[Reply], None] = lambda reply: None
) -> None:
    """Ask everything; the replies go into `results`, also when it is cut short by Ctrl-C or a server that fails."""

    def record(reply: Reply) -> None:
        results.replies.append(reply)
        show(reply)

    try:
        model.ask(asked, record)
    except KeyboardInterrupt:
        results.stopped = "interrupted"
    except UserError as error:
        results.stopped = str(error)


def run(args: argparse.Namespace) -> int:
    """Ask, score, and write; 0 when everything was answered, 1 when something failed."""
    sources = [DataSource.parse(text) for text in args.data]
    questions, left_out = read_questions(sources, args.seed)
    asked = _prompts(questions, args)
    args.output.mkdir(parents=True, exist_ok=True)
    model, name = _model(args)
    print(f"asking {name}: {len(questions):,} questions, {len(asked):,} prompts")
    about = {
        "model": name,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "data": args.data,
        "seed": args.seed,
        "max_tokens": args.max_tokens,
        "versions": {package: version(package) for package in ("qwen-vqa", "torch", "transformers")},
    }
    rules = RULES[args.metric]
    results = Results(about, len(asked), left_out, rules=rules)
    with tqdm(total=len(asked), desc="asking", unit="prompt", smoothing=0.05) as bar:
        evaluate(model, asked, results, _Display(bar, rules))
    results.write(args.output / RESULTS_FILE)
    write_page(results, args.output / PAGE_FILE, args.seed)
    print(results.table())
    print(f"wrote {args.output / RESULTS_FILE} and {args.output / PAGE_FILE}")
    return _conclude(results)


def _prompts(questions: list[Question], args: argparse.Namespace) -> list[Prompt]:
    """Each question as it is, and under the baselines: those that were asked for, or those that can be had."""
    baselines = BASELINES if args.baseline is None else args.baseline
    try:
        return prompts(questions, [OWN, *(CONDITIONS[name] for name in baselines)], args.seed)
    except TooFewPicturesError as error:
        if args.baseline is not None:
            raise
        print(f"without the baseline other-picture: {str(error).partition(';')[0]}")
        return prompts(questions, [OWN, NONE], args.seed)


class _Display:
    """Accuracy and failures so far, beside the bar and its ETA."""

    def __init__(self, bar: Any, rules: MetricRules) -> None:
        self.bar, self.rules = bar, rules
        self.right, self.answered, self.failed = 0.0, 0, 0

    def __call__(self, reply: Reply) -> None:
        if reply.fault:
            self.failed += 1
        elif reply.prompt.condition == OWN:
            self.answered += 1
            self.right += Scored.of(reply, self.rules).accuracy
        accuracy = f"{self.right / self.answered:.1%}" if self.answered else "-"
        self.bar.set_postfix(accuracy=accuracy, failed=self.failed, refresh=False)
        self.bar.update()


def _model(args: argparse.Namespace) -> tuple[Model, str]:
    if args.url is not None:
        server = ServerModel.find(
            args.url,
            args.model,
            args.api_key or os.environ.get("OPENAI_API_KEY") or "none",
            max_tokens=args.max_tokens,
            concurrency=args.concurrency,
            timeout=args.timeout,
        )
        return server, f"{server.name} at {server.url}"
    dtype = args.dtype if args.dtype == "auto" else getattr(torch, args.dtype)
    checkpoint = CheckpointModel.load(args.checkpoint, args.model, dtype, args.max_tokens, args.batch_size, args.device)
    others = [name for name in adapter_folders(args.checkpoint) if name != args.model]
    if others:
        print(f"adapters that are not in use: {', '.join(others)} (--model chooses one)")
    dtype_name = str(checkpoint.model.dtype).removeprefix("torch.")
    return checkpoint, f"{args.checkpoint} ({args.model or 'base model'}, {dtype_name}, {checkpoint.model.device.type})"


def _conclude(results: Results) -> int:
    if results.stopped:
        print(f"STOPPED after {len(results.replies):,} of {results.asked:,} prompts: {results.stopped}")
        return INTERRUPTED if results.stopped == "interrupted" else 1
    return 1 if results.failed else 0
