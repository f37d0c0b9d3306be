"""Replies to scores, and scores to means by data set and answer type."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qwen_vqa.plugin.chat.prompts import UNANSWERABLE
from qwen_vqa.train.evaluation.answer_metrics import anls, exact_match, vqa_accuracy, wilson_interval
from qwen_vqa.train.evaluation.metric_rules import VQA, MetricRules
from qwen_vqa.train.evaluation.normalisation import normalise_answer
from qwen_vqa.train.evaluation.questions import OWN, Condition
from qwen_vqa.train.evaluation.replies import Reply

ALL_TYPES = "all"


@dataclass(frozen=True)
class Scored:
    """An answer's scores from 0 to 1; `vqa_accuracy` is None where too few people answered."""

    reply: Reply
    vqa_accuracy: float | None
    exact_match: float
    anls: float

    @classmethod
    def of(cls, reply: Reply, rules: MetricRules = VQA) -> "Scored":
        """Scores of a reply that is an answer."""
        question = reply.prompt.question
        return cls(
            reply,
            vqa_accuracy(reply.answer, question.answers, rules),
            exact_match(reply.answer, question.target, rules),
            anls(reply.answer, question.answers, rules=rules),
        )

    @property
    def accuracy(self) -> float:
        """VQA accuracy, or exact match with the target where there is none."""
        return self.exact_match if self.vqa_accuracy is None else self.vqa_accuracy


@dataclass(frozen=True)
class Mean:
    """The mean of `count` scores, and its 95% confidence interval (Wilson)."""

    mean: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, scores: Sequence[float]) -> "Mean | None":
        """None where there is nothing to average."""
        if not scores:
            return None
        mean = min(1.0, sum(scores) / len(scores))
        low, high = wilson_interval(mean, len(scores))
        return cls(mean, low, high, len(scores))


@dataclass(frozen=True)
class Group:
    """The replies for one data set, of one answer type or all of them, under one condition.

    `accuracy` is `vqa_accuracy` where people's answers are enough for it, and `exact_match` where they are not.
    """

    data_set: str
    answer_type: str
    condition: Condition
    failed: int
    accuracy: Mean | None
    vqa_accuracy: Mean | None
    exact_match: Mean | None
    anls: Mean | None
    rules_name: str = VQA.name

    @property
    def metric(self) -> str:
        """What `accuracy` is here."""
        if self.accuracy is None or self.vqa_accuracy is None:
            return "exact match"
        whole = self.vqa_accuracy.count == self.accuracy.count
        return self.rules_name if whole else f"{self.rules_name.partition(' ')[0]} or exact"


def score(replies: Iterable[Reply], rules: MetricRules = VQA) -> list[Scored]:
    """The scores of the replies that are answers; what failed has none."""
    return [Scored.of(reply, rules) for reply in replies if not reply.fault]


def group(replies: Sequence[Reply], rules: MetricRules = VQA) -> list[Group]:
    """By data set in their order: all of it under each condition, then each answer type, if there are several."""
    groups = []
    for data_set in _in_order(reply.prompt.question.data_set for reply in replies):
        own = [reply for reply in replies if reply.prompt.question.data_set == data_set]
        types = sorted({reply.prompt.question.answer_type for reply in own} - {""})
        for answer_type in (ALL_TYPES, *(types if len(types) > 1 else ())):
            of_type = [reply for reply in own if answer_type in (ALL_TYPES, reply.prompt.question.answer_type)]
            for condition in _in_order(reply.prompt.condition for reply in of_type):
                groups.append(_group(data_set, answer_type, condition, of_type, rules))
    return groups


def _group(
    data_set: str, answer_type: str, condition: Condition, replies: Sequence[Reply], rules: MetricRules
) -> Group:
    under = [reply for reply in replies if reply.prompt.condition == condition]
    scored = score(under, rules)
    return Group(
        data_set,
        answer_type,
        condition,
        len(under) - len(scored),
        Mean.of([one.accuracy for one in scored]),
        Mean.of([one.vqa_accuracy for one in scored if one.vqa_accuracy is not None]),
        Mean.of([one.exact_match for one in scored]),
        Mean.of([one.anls for one in scored]),
        rules.name,
    )


@dataclass(frozen=True)
class Answerability:
    """How well a model knows what a picture does not answer (VizWiz' second task): it says `unanswerable`.

    VizWiz ranks by average precision, which needs a confidence; a text answer has none, so that it is not here.
    """

    data_set: str
    unanswerable: int
    said_so: int
    precision: float
    recall: float
    f1: float


def answerability(replies: Sequence[Reply]) -> list[Answerability]:
    """Of the data sets that have the answer type `unanswerable`, with their own pictures."""
    found = []
    for data_set in _in_order(reply.prompt.question.data_set for reply in replies):
        own = [
            reply
            for reply in replies
            if reply.prompt.question.data_set == data_set and reply.prompt.condition == OWN and not reply.fault
        ]
        truly = [reply.prompt.question.answer_type == UNANSWERABLE for reply in own]
        said = [normalise_answer(reply.answer) == UNANSWERABLE for reply in own]
        if any(truly):
            right = sum(true and says for true, says in zip(truly, said, strict=True))
            precision = right / sum(said) if any(said) else 0.0
            f1 = 2 * right / (sum(said) + sum(truly))
            found.append(Answerability(data_set, sum(truly), sum(said), precision, right / sum(truly), f1))
    return found


def _in_order(values: Iterable) -> list:
    return list(dict.fromkeys(values))
