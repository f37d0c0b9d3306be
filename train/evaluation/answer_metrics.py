"""Scores of an answer against what people said, each from 0 to 1, and how sure their mean is."""

import math
from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from qwen_vqa.train.evaluation.metric_rules import VQA, MetricRules

AGREEING = 3  # people who said so make an answer right
FEWEST_ANSWERS = AGREEING + 1  # with fewer, leaving one out leaves no way to a full score
_Z95 = 1.959964


def vqa_accuracy(answer: str, answers: Sequence[str], rules: MetricRules = VQA) -> float | None:
    """VQA's official accuracy (Antol et al. 2015, arXiv:1505.00468): min(people who said so / 3, 1), averaged over all
    ways to leave one of the people out.

    The answer and all of theirs are normalised. None for fewer than four answers, for which it says nothing.
    """
    if len(answers) < FEWEST_ANSWERS:
        return None
    normal = rules.normalise(answer)
    agreeing = sum(rules.normalise(other) == normal for other in answers)
    # Leaving out one who agrees happens `agreeing` times, one who does not the other times.
    left_out = agreeing * min((agreeing - 1) / AGREEING, 1) if agreeing else 0.0
    kept = (len(answers) - agreeing) * min(agreeing / AGREEING, 1)
    return (left_out + kept) / len(answers)


def exact_match(answer: str, target: str, rules: MetricRules = VQA) -> float:
    """1 if the answer is the target in normal form, else 0."""
    return float(rules.normalise(answer) == rules.normalise(target))


def anls(answer: str, answers: Sequence[str], threshold: float = 0.5, rules: MetricRules = VQA) -> float:
    """Average normalised Levenshtein similarity (Biten et al. 2019, arXiv:1905.13648) to the nearest of the answers.

    Case and outer spaces do not count. A distance of `threshold` times the longer text or more scores 0, as in the
    paper; by M4C's rules, only one of more.
    """
    text = answer.strip().lower()
    distance = min((Levenshtein.normalized_distance(text, other.strip().lower()) for other in answers), default=1.0)
    near = distance <= threshold if rules.half_counts else distance < threshold
    return 1 - distance if near else 0.0


def wilson_interval(mean: float, count: int) -> tuple[float, float]:
    """Wilson's 95% confidence interval of the mean of `count` independent scores from 0 to 1.

    Exact in kind for right-or-wrong scores. Soft scores vary less than those of the same mean, so that for them it
    is, if anything, too wide. Unlike a bootstrap, it is not empty when all scores are alike.
    """
    if not count:
        return 0.0, 1.0
    z2 = _Z95**2 / count
    centre = (mean + z2 / 2) / (1 + z2)
    half = _Z95 * math.sqrt(mean * (1 - mean) / count + z2 / (4 * count)) / (1 + z2)
    return max(0.0, centre - half), min(1.0, centre + half)
