"""What quantising does to answers: accuracy and KL divergence on held-out prompts with images, and layer errors.

One model is in memory at a time. Of the original stay its output layer and the states that go into it where an answer
stands, a few kilobytes a token: from those come its distributions again, which themselves are 600 a token.
"""

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from qwen_vqa.plugin.processor import QwenVqaProcessor
from qwen_vqa.quantize.quantised_checkpoint import DequantisedLayers
from qwen_vqa.train.data.collator import ConversationCollator, Sample
from qwen_vqa.train.evaluation.answer_metrics import wilson_interval
from qwen_vqa.train.model.labels import IGNORED
from qwen_vqa.train.model.reference_model import QwenVqaForConditionalGeneration

# Samples and tokens of a forward pass, padding included; positions whose logits are held at once.
BATCH = 16
TOKENS_AT_ONCE = 4096
LOGITS_AT_ONCE = 64
Z95 = 1.96  # of a 95% confidence interval

Loader = Callable[[], QwenVqaForConditionalGeneration]


@dataclass(frozen=True)
class Answer:
    """What a model says at the positions of a sample's last answer, the right one before each of them.

    Attributes:
        states: [positions, text width], what goes into the output layer.
        tokens: [positions], the right ones, end of turn included.
        output_layer: the model's.
    """

    states: torch.Tensor
    tokens: torch.Tensor
    output_layer: nn.Module

    @torch.inference_mode()
    def log_probs(self) -> Iterator[torch.Tensor]:
        """Of the next token, [some positions, vocabulary] at a time, in float32."""
        for states in self.states.split(LOGITS_AT_ONCE):
            yield self.output_layer(states).float().log_softmax(-1)

    @property
    def right(self) -> bool:
        """Whether greedy decoding gives the answer to the letter, end of turn included."""
        parts = zip(self.log_probs(), self.tokens.split(LOGITS_AT_ONCE), strict=True)
        return all(bool((part.argmax(-1) == tokens).all()) for part, tokens in parts)


@torch.inference_mode()
def answers(
    model: QwenVqaForConditionalGeneration, processor: QwenVqaProcessor, samples: list[Sample]
) -> Iterator[Answer]:
    """The answers to all samples, in order. One forward pass over question and answer shows greedy decoding's."""
    collate = ConversationCollator(processor)
    device = model.device
    decoder, output_layer = model.language_model.get_decoder(), model.get_output_embeddings()
    for some in _batches(collate, samples):
        batch = {name: tensor.to(device) for name, tensor in collate(some).items()}
        labels, mask = batch.pop("labels")[:, 1:], batch.pop("attention_mask")
        states = decoder(inputs_embeds=model.embed(**batch), attention_mask=mask, use_cache=False).last_hidden_state
        for row, label in zip(states, labels, strict=True):
            last = last_answer(label)
            yield Answer(row[last], label[last], output_layer)


def _batches(collate: ConversationCollator, samples: list[Sample]) -> Iterator[list[Sample]]:
    batch: list[Sample] = []
    longest = 0
    for sample in samples:
        tokens = collate.token_count(sample["messages"], sample["sample_id"])
        longest = max(longest, tokens)
        if batch and (len(batch) == BATCH or (len(batch) + 1) * longest > TOKENS_AT_ONCE):
            yield batch
            batch, longest = [], tokens
        batch.append(sample)
    if batch:
        yield batch


def last_answer(labels: torch.Tensor) -> torch.Tensor:
    """Positions of the last run of labels [T] that count."""
    positions = (labels != IGNORED).nonzero()[:, 0]
    gaps = (positions.diff() > 1).nonzero()[:, 0]
    return positions[int(gaps[-1]) + 1 :] if len(gaps) else positions


def compare(
    original: Loader, quantised: Loader, processor: QwenVqaProcessor, groups: dict[str, list[Sample]]
) -> dict[str, Any]:
    """Accuracy of both sides for each group and for all, and the KL divergence of their next-token distributions.

    The original is loaded, asked everything and let go before the quantised model is loaded.
    """
    samples = [sample for group in groups.values() for sample in group]
    with tqdm(total=2 * len(samples), desc="comparing answers", unit="answer") as progress:
        before = _asked(original, processor, samples, progress)
        found = []
        for first, second in zip(before, answers(_alone(quantised), processor, samples), strict=True):
            found.append((first.right, second.right, divergence(first, second)))
            progress.update()
    pairs = iter([(first, second) for first, second, _ in found])
    rows = {name: [next(pairs) for _ in group] for name, group in groups.items()}
    return {"accuracy": accuracy_table(rows), "kl": kl_summary([kl for _, _, kl in found])}


def _asked(load: Loader, processor: QwenVqaProcessor, samples: list[Sample], progress: tqdm) -> list[Answer]:
    found = []
    for answer in answers(_alone(load), processor, samples):
        found.append(answer)
        progress.update()
    return found


def _alone(load: Loader) -> QwenVqaForConditionalGeneration:
    gc.collect()  # what was let go may still hold itself in a cycle of references
    return load()


def divergence(original: Answer, quantised: Answer) -> float:
    """KL(original || quantised) in nats, the mean over positions."""
    parts = zip(original.log_probs(), quantised.log_probs(), strict=True)
    return sum((p.exp() * (p - q)).sum().item() for p, q in parts) / len(original.tokens)


def kl_summary(divergences: list[float]) -> dict[str, float]:
    """Mean, median and 99th percentile over prompts."""
    values = torch.tensor(divergences, dtype=torch.float64)
    return {
        "prompts": len(divergences),
        "mean": values.mean().item(),
        "median": values.median().item(),
        "p99": values.quantile(0.99).item(),
    }


def accuracy_table(groups: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, dict[str, Any]]:
    """A row for each group of scores, and for all where there are several."""
    table = {name: accuracy_row(pairs) for name, pairs in groups.items() if pairs}
    if len(table) > 1:
        table["all"] = accuracy_row([pair for pairs in groups.values() for pair in pairs])
    return table


def accuracy_row(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Scores from 0 to 1, or right and wrong, of (original, quantised) on the same questions: their means in percent
    with 95% intervals, and the difference with its own.
    """
    number = len(pairs)
    before, after = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
    return {
        "n": number,
        "original": 100 * before / number,
        "original_ci": wilson(before, number),
        "quantised": 100 * after / number,
        "quantised_ci": wilson(after, number),
        "change": 100 * (after - before) / number,
        "change_ci": paired_interval([second - first for first, second in pairs]),
    }


def paired_interval(differences: list[float]) -> list[float]:
    """The 95% interval of the mean of differences from -1 to 1 on the same questions, in points.

    Half a question is added to each cell (Agresti and Min 2005), or no change at all
    would claim to be certain.
    """
    number = len(differences) + 2
    total, squares = sum(differences), sum(one * one for one in differences) + 1
    reach = Z95 * math.sqrt(squares - total**2 / number) / number
    return [100 * (total / number - reach), 100 * (total / number + reach)]


def wilson(right: float, number: int) -> list[float]:
    """The 95% interval of a share, in percent."""
    return [100 * bound for bound in wilson_interval(right / number, number)]


def layer_errors(
    original: QwenVqaForConditionalGeneration,
    quantised: DequantisedLayers,
    processor: QwenVqaProcessor,
    samples: list[Sample],
) -> dict[str, float]:
    """Relative error of each quantised layer's output, given the input that it has in the original model.

    |Q(x) - L(x)| / |L(x)| over all tokens of the samples, in float32; the worst layer first.
    """
    squares = {name: [0.0, 0.0] for name in quantised.names}
    hooks = [
        original.get_submodule(name).register_forward_hook(_measure(quantised, name, sums))
        for name, sums in squares.items()
    ]
    try:
        for _ in tqdm(answers(original, processor, samples), "layer errors", len(samples), unit="sample"):
            pass
    finally:
        for hook in hooks:
            hook.remove()
    errors = {name: math.sqrt(wrong / max(all_, 1e-30)) for name, (wrong, all_) in squares.items()}
    return dict(sorted(errors.items(), key=lambda entry: -entry[1]))


def _measure(quantised: DequantisedLayers, name: str, sums: list[float]) -> Any:
    def hook(module: nn.Linear, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        exact = inputs[0].float()
        weight = quantised.weight(name).to(exact.device)
        rounded = nn.functional.linear(quantised.scheme.round_activations(exact), weight)
        wrong = rounded - nn.functional.linear(exact, module.weight.float())  # the biases are the same
        sums[0] += wrong.square().sum().item()
        sums[1] += output.float().square().sum().item()

    return hook
