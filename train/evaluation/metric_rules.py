"""By whose rules answers are scored: VQA's, or those of M4C's evaluator, by which others' figures of TextVQA are."""

from collections.abc import Callable
from dataclasses import dataclass

from qwen_vqa.train.evaluation.normalisation import m4c_normal_form, normalise_answer


@dataclass(frozen=True)
class MetricRules:
    """What makes two answers equal, and what becomes of an answer that is half right.

    Attributes:
        name: of the accuracy, in tables.
        normalise: the normal form in which answers are compared.
        half_counts: whether ANLS gives a likeness of exactly 0.5 its 0.5, or 0.
    """

    name: str
    normalise: Callable[[str], str]
    half_counts: bool


VQA = MetricRules("VQA accuracy", normalise_answer, half_counts=False)
M4C = MetricRules("m4c accuracy", m4c_normal_form, half_counts=True)
RULES = {"vqa": VQA, "m4c": M4C}
