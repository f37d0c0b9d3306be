"""What an evaluation found, as a table for the terminal and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from qwen_vqa.train.data.mixing import SHOWN
from qwen_vqa.train.evaluation.metric_rules import VQA, MetricRules
from qwen_vqa.train.evaluation.questions import OWN, LeftOut
from qwen_vqa.train.evaluation.replies import Reply
from qwen_vqa.train.evaluation.scoring import Group, Mean, Scored, answerability, group, score

FAULTS_SHOWN = 5
WIDTHS = (6, 10, 12, 14, 8, 8, 15)  # of the table's numbers; the last is that of each blind baseline
METHOD = {
    "vqa_accuracy": "min(people who said so / 3, 1), averaged over leaving each person out; answers normalised",
    "exact_match": "equal to the target (most people's answer), both normalised",
    "anls": "normalised Levenshtein similarity to the nearest answer, 0 below 0.5; of exactly 0.5, 0 by VQA's rules",
    "accuracy": "vqa_accuracy; exact_match for questions with fewer than 4 answers",
    "intervals": "Wilson, 95%; questions are taken as independent",
    "no picture": "the same question with its pictures left out",
    "other picture": "the same question with pictures of other questions of its data set, drawn at random",
}


@dataclass
class Results:
    """The replies so far, and what they are replies to. `stopped` says why not everything was asked."""

    about: dict[str, Any]
    asked: int
    left_out: LeftOut = field(default_factory=dict)
    replies: list[Reply] = field(default_factory=list)
    stopped: str = ""
    rules: MetricRules = VQA

    @property
    def groups(self) -> list[Group]:
        """The means, see `scoring.group`."""
        return group(self.replies, self.rules)

    @property
    def scores(self) -> list[Scored]:
        """Of every answer."""
        return score(self.replies, self.rules)

    @property
    def failed(self) -> list[Reply]:
        """The prompts without an answer."""
        return [reply for reply in self.replies if reply.fault]

    def write(self, file: Path) -> None:
        """As JSON: what was asked, the means, and every reply with its scores."""
        content = {
            **self.about,
            "method": METHOD | {"rules": self.rules.name},
            "complete": not self.stopped,
            "stopped": self.stopped,
            "asked": self.asked,
            "answered": len(self.replies) - len(self.failed),
            "failed": len(self.failed),
            "left_out": {name: {why: len(ids) for why, ids in of.items()} for name, of in self.left_out.items()},
            "means": [{**asdict(one), "metric": one.metric} for one in self.groups],
            "answerability": [asdict(one) for one in answerability(self.replies)],
            "failures": [_named(reply) | {"fault": reply.fault} for reply in self.failed],
            "replies": [
                _named(one.reply)
                | {
                    "answer_type": one.reply.prompt.question.answer_type,
                    "question": one.reply.prompt.question.text,
                    "target": one.reply.prompt.question.target,
                    "answers": one.reply.prompt.question.answers,
                    "answer": one.reply.answer,
                    "vqa_accuracy": one.vqa_accuracy,
                    "exact_match": one.exact_match,
                    "anls": one.anls,
                }
                for one in self.scores
            ],
        }
        file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def table(self) -> str:
        """The means with their intervals beside the blind baselines; below it what failed or was left out."""
        groups = self.groups
        blind = list(dict.fromkeys(one.condition for one in groups if one.condition != OWN))
        header = ("n", "accuracy", "95%", "by", "exact", "ANLS", *blind)
        lines = [_line("data set", "answer type", *header)]
        for one in groups:
            if one.condition == OWN:
                lines.append(_row(one, [other for other in groups if _same(one, other) and other.condition in blind]))
        for found in answerability(self.replies):
            lines.append(
                f"{found.data_set}: {found.unanswerable} are unanswerable, said of {found.said_so}; precision "
                f"{found.precision:.1%}, recall {found.recall:.1%}, F1 {found.f1:.1%}"
            )
        for data_set, faults in self.left_out.items():
            for fault, names in faults.items():
                more = ", ..." if len(names) > SHOWN else ""
                lines.append(f"{data_set}: left out {len(names):,}: {fault}: {', '.join(names[:SHOWN])}{more}")
        return "\n".join(lines + self._failures())

    def _failures(self) -> list[str]:
        if not self.failed:
            return []
        lines = [f"FAILED: {len(self.failed)} of {len(self.replies)} have no answer and are not scored:"]
        for reply in self.failed[:FAULTS_SHOWN]:
            question = reply.prompt.question
            lines.append(f"  {question.data_set} {question.question_id} ({reply.prompt.condition}): {reply.fault}")
        return lines + (["  ..."] if len(self.failed) > FAULTS_SHOWN else [])


def _named(reply: Reply) -> dict[str, Any]:
    question = reply.prompt.question
    return {
        "data_set": question.data_set,
        "question_id": question.question_id,
        "condition": reply.prompt.condition,
    }


def _same(one: Group, other: Group) -> bool:
    return (one.data_set, one.answer_type) == (other.data_set, other.answer_type)


def _row(own: Group, blind: Sequence[Group]) -> str:
    accuracy = own.accuracy
    interval = f"{100 * accuracy.low:.1f}-{100 * accuracy.high:.1f}" if accuracy else "-"
    cells = [str(accuracy.count if accuracy else 0), _percent(accuracy), interval, own.metric]
    cells += [_percent(own.exact_match), _percent(own.anls), *(_percent(one.accuracy) for one in blind)]
    return _line(own.data_set, own.answer_type, *cells)


def _percent(mean: Mean | None) -> str:
    return f"{100 * mean.mean:.1f}%" if mean else "-"


def _line(data_set: str, answer_type: str, *cells: str) -> str:
    padded = (f"{cell:>{width}}" for cell, width in zip_longest(cells, WIDTHS[: len(cells)], fillvalue=WIDTHS[-1]))
    return f"{data_set:<10}{answer_type:<14}" + "".join(padded)
