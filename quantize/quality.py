"""What quantising does to answers: accuracy and KL divergence on held-out prompts with images, and layer errors."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from qwen_vqa.plugin.processor import QwenVqaProcessor
from qwen_vqa.quantize.checkpoint import RoundedLinear
from qwen_vqa.quantize.samples import Sample
from qwen_vqa.train.collator import ConversationCollator
from qwen_vqa.train.labels import IGNORED

BATCH = 16
Z95 = 1.96  # of a 95% confidence interval


@dataclass(frozen=True)
class Answers:
    """What a model says at the positions of a sample's last answer, the right one before each of them.

    Attributes:
        right: whether greedy decoding gives the answer to the letter, end of turn included.
        log_probs: [positions, vocabulary] of the next token.
    """

    right: bool
    log_probs: torch.Tensor


@torch.inference_mode()
def answers(model: nn.Module, processor: QwenVqaProcessor, samples: list[Sample]) -> Iterator[Answers]:
    """The answers to all samples, in order. One forward pass over question and answer shows greedy decoding's."""
    collate = ConversationCollator(processor)
    for start in range(0, len(samples), BATCH):
        batch = collate(samples[start : start + BATCH])
        labels = batch.pop("labels")[:, 1:]
        for row, label in zip(model(**batch).logits[:, :-1], labels, strict=True):
            last = last_answer(label)
            log_probs = row[last].float().log_softmax(-1)
            yield Answers(bool((log_probs.argmax(-1) == label[last]).all()), log_probs)


def last_answer(labels: torch.Tensor) -> torch.Tensor:
    """Positions of the last run of labels [T] that count."""
    positions = (labels != IGNORED).nonzero()[:, 0]
    gaps = (positions.diff() > 1).nonzero()[:, 0]
    return positions[int(gaps[-1]) + 1 :] if len(gaps) else positions


def compare(
    original: nn.Module, quantised: nn.Module, processor: QwenVqaProcessor, groups: dict[str, list[Sample]]
) -> dict[str, Any]:
    """Accuracy of both sides for each group and for all, and the KL divergence of their next-token distributions."""
    rows: dict[str, list[tuple[bool, bool]]] = {}
    divergences: list[float] = []
    total = sum(len(samples) for samples in groups.values())
    with tqdm(total=total, desc="comparing answers", unit="question") as progress:
        for name, samples in groups.items():
            rows[name] = []
            pairs = zip(answers(original, processor, samples), answers(quantised, processor, samples), strict=True)
            for before, after in pairs:
                rows[name].append((before.right, after.right))
                divergences.append(divergence(before.log_probs, after.log_probs))
                progress.update()
    table = {name: accuracy_row(pairs) for name, pairs in rows.items()}
    if len(table) > 1:
        table["all"] = accuracy_row([pair for pairs in rows.values() for pair in pairs])
    return {"accuracy": table, "kl": kl_summary(divergences)}


def divergence(original: torch.Tensor, quantised: torch.Tensor) -> float:
    """KL(original || quantised) in nats, the mean over positions, of log-probabilities [positions, vocabulary]."""
    return (original.exp() * (original - quantised)).sum(-1).mean().item()


def kl_summary(divergences: list[float]) -> dict[str, float]:
    """Mean, median and 99th percentile over prompts."""
    values = torch.tensor(divergences, dtype=torch.float64)
    return {
        "prompts": len(divergences),
        "mean": values.mean().item(),
        "median": values.median().item(),
        "p99": values.quantile(0.99).item(),
    }


def accuracy_row(pairs: list[tuple[bool, bool]]) -> dict[str, Any]:
    """Accuracies in percent with their 95% intervals, and the difference on the same questions with its own."""
    number = len(pairs)
    before, after = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    lost, won = sum(b and not a for b, a in pairs), sum(a and not b for b, a in pairs)
    return {
        "n": number,
        "original": 100 * sum(before) / number,
        "original_ci": wilson(sum(before), number),
        "quantised": 100 * sum(after) / number,
        "quantised_ci": wilson(sum(after), number),
        "change": 100 * (won - lost) / number,
        "change_ci": paired_interval(lost, won, number),
    }


def paired_interval(lost: int, won: int, number: int) -> list[float]:
    """The 95% interval of a difference of shares on the same questions, in points.

    Half a question is added to each cell (Agresti and Min 2005), or no change at all would claim to be certain.
    """
    lost_, won_, number_ = lost + 0.5, won + 0.5, number + 2
    middle = (won_ - lost_) / number_
    reach = Z95 * math.sqrt(lost_ + won_ - (won_ - lost_) ** 2 / number_) / number_
    return [100 * (middle - reach), 100 * (middle + reach)]


def wilson(right: int, number: int) -> list[float]:
    """The 95% interval of a share, in percent (Wilson 1927)."""
    share, square = right / number, Z95**2
    middle = (share + square / (2 * number)) / (1 + square / number)
    reach = Z95 * math.sqrt(share * (1 - share) / number + square / (4 * number**2)) / (1 + square / number)
    return [100 * max(0.0, middle - reach), 100 * min(1.0, middle + reach)]


@torch.inference_mode()
def layer_errors(
    original: nn.Module, quantised: nn.Module, processor: QwenVqaProcessor, samples: list[Sample]
) -> dict[str, float]:
    """Relative error of each quantised layer's output, given the input that it has in the original model.

    |Q(x) - L(x)| / |L(x)| over all tokens of the samples; the worst layer first.
    """
    squares: dict[str, list[float]] = {}
    hooks = []
    for name, layer in quantised.named_modules():
        if isinstance(layer, RoundedLinear):
            squares[name] = [0.0, 0.0]
            hooks.append(original.get_submodule(name).register_forward_hook(_measure(layer, squares[name])))
    try:
        for _ in answers(original, processor, samples):
            pass
    finally:
        for hook in hooks:
            hook.remove()
    errors = {name: math.sqrt(wrong / max(all_, 1e-30)) for name, (wrong, all_) in squares.items()}
    return dict(sorted(errors.items(), key=lambda entry: -entry[1]))


def _measure(layer: nn.Module, sums: list[float]) -> Any:
    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        sums[0] += (layer(inputs[0]).float() - output.float()).square().sum().item()
        sums[1] += output.float().square().sum().item()

    return hook
