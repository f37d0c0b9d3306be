"""Answers that servers generate to held-out questions, scored as `qwen-vqa evaluate` scores them: by VQA accuracy, or,
where a question has fewer than four people's answers, by exact match with its target in VQA's normal form.
"""

import io
from typing import Any

from qwen_vqa.quantize.answer_quality import accuracy_table
from qwen_vqa.train.data.collator import Sample
from qwen_vqa.train.data.row import Picture
from qwen_vqa.train.evaluation.questions import OWN, Prompt, Question
from qwen_vqa.train.evaluation.replies import Reply
from qwen_vqa.train.evaluation.scoring import Scored, group


def prompts_of(groups: dict[str, list[Sample]]) -> list[Prompt]:
    """What a server is asked: each conversation up to its last answer, its pictures without loss."""
    return [_prompt(name, sample) for name, samples in groups.items() for sample in samples]


def _prompt(name: str, sample: Sample) -> Prompt:
    messages = sample["messages"]
    last = max(number for number, message in enumerate(messages) if message["role"] == "assistant")
    target, pictures = messages[last]["content"], tuple(_picture(image) for image in sample["images"])
    answers = tuple(sample.get("answers") or (target,))
    question = Question(name, sample["sample_id"], messages[:last], pictures, target, answers, "")
    return Prompt(question, OWN, question.messages, pictures)


def _picture(image: Any) -> Picture:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return Picture("", buffer.getvalue())


def served_accuracy(original: list[Reply], quantised: list[Reply]) -> dict[str, Any]:
    """Both servers' replies to the same prompts, scored by group; questions without an answer of both are left out.

    `metric` is what the scores are: VQA accuracy, exact match, or VQA or exact.
    """
    rows: dict[str, list[tuple[float, float]]] = {}
    for first, second in zip(original, quantised, strict=True):
        pairs = rows.setdefault(first.prompt.question.data_set, [])
        if not (first.fault or second.fault):
            pairs.append((Scored.of(first).accuracy, Scored.of(second).accuracy))
    metrics = {one.metric for one in group(original) if one.accuracy}
    return {
        "metric": metrics.pop() if len(metrics) == 1 else "VQA or exact",
        "accuracy": accuracy_table(rows),
        "unanswered": {
            side: [f"{reply.prompt.question.question_id}: {reply.fault}" for reply in replies if reply.fault]
            for side, replies in (("original", original), ("quantised", quantised))
        },
    }


def served_label(served: dict[str, Any]) -> str:
    """What the servers' answers are scored by."""
    if served["metric"] == "exact match":
        return "exact match, served (one answer a question)"
    return "VQA accuracy, served" if served["metric"] == "VQA accuracy" else "VQA accuracy or exact match, served"
