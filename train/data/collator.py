"""Samples to a batch: the prompt and the pixels as the server makes them, and the labels."""

from dataclasses import dataclass
from typing import Any

import torch

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.processor import QwenVqaProcessor
from qwen_vqa.plugin.views.image_processor import LAYOUTS
from qwen_vqa.train.model.labels import IGNORED, assistant_labels

Sample = dict[str, Any]


@dataclass(frozen=True)
class ConversationCollator:
    """Called with `ConversationDataset` samples, returns the model's inputs, padded on the right.

    `max_length` is in tokens, image tokens included. A longer sample raises: a cut prompt would
    train on something that is never served. With `with_sample_ids` the batch names its samples.
    """

    processor: QwenVqaProcessor
    max_length: int = 2048
    with_sample_ids: bool = False

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """`input_ids`, `attention_mask`, `labels` [B, T] and, if there are images, `pixel_values` [views, 3, S, S]
        (and `view_layouts` [images, 6], where images differ in their views).

        A sample may carry `image_features` [images, tokens, width] of the frozen encoder in place of `images`.

        Raises:
            UserError: a sample is too long, or has an answer that the chat template does not reproduce.
        """
        encoded = [self._encode(sample) for sample in samples]
        longest = max(len(ids) for ids, _ in encoded)
        input_ids = torch.full((len(encoded), longest), self.processor.tokenizer.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        labels = torch.full_like(input_ids, IGNORED)
        for row, (ids, sample_labels) in enumerate(encoded):
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = 1
            labels[row, : len(ids)] = sample_labels
        batch: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        if self.with_sample_ids:
            batch["sample_ids"] = [sample["sample_id"] for sample in samples]
        images = [image for sample in samples for image in sample.get("images") or []]
        features = [sample["image_features"] for sample in samples if sample.get("image_features") is not None]
        if features:
            batch["image_features"] = torch.cat(features)
        elif images:
            made = self.processor.image_processor(images, return_tensors="pt")
            batch |= {name: made[name] for name in ("pixel_values", LAYOUTS) if name in made}
        return batch

    def token_count(self, messages: list[dict[str, Any]], sample_id: str, image_tokens: list[int] | None = None) -> int:
        """How many tokens a conversation has, image tokens included; at most, where those of its images are not given.

        Raises:
            UserError: an answer that the chat template does not reproduce.
        """
        return len(self._tokens_and_labels(messages, sample_id, image_tokens)[0])

    def _encode(self, sample: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        ids, labels = self._tokens_and_labels(sample["messages"], sample.get("sample_id"), self._image_tokens(sample))
        if len(ids) > self.max_length:
            raise UserError(
                f"sample {sample.get('sample_id')} has {len(ids)} tokens, more than max_length "
                f"{self.max_length}: shorten it or raise --max-length."
            )
        return ids, labels

    def _image_tokens(self, sample: dict[str, Any]) -> list[int]:
        """How many each image takes, in order."""
        if sample.get("image_features") is not None:
            return [self.processor.image_processor.tokens_per_view] * len(sample["image_features"])
        return [self.processor.image_processor.tokens_of(image) for image in sample.get("images") or []]

    def _tokens_and_labels(
        self, messages: list[dict[str, Any]], sample_id: str | None, image_tokens: list[int] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of a conversation whose images take so many tokens each; None: as many as an image can take."""
        image = self.processor.image_token
        first, *rest = self.processor.apply_chat_template(messages, tokenize=False).split(image)
        counts = (
            [self.processor.image_processor.most_image_tokens] * len(rest) if image_tokens is None else image_tokens
        )
        if len(counts) != len(rest):
            raise UserError(f"sample {sample_id} has {len(counts)} images, and {len(rest)} in its conversation.")
        expanded = first + "".join(image * count + text for count, text in zip(counts, rest, strict=True))
        ids = torch.tensor(self.processor.tokenizer.encode(expanded, add_special_tokens=False))
        labels = assistant_labels(ids, self.processor.tokenizer)
        answers = sum(message["role"] == "assistant" for message in messages)
        starts = int(((labels[1:] != IGNORED) & (labels[:-1] == IGNORED)).sum())
        if starts != answers:
            raise UserError(
                f"sample {sample_id} has {answers} answers, but {starts} were found in its prompt: "
                "an answer may not begin with a line break."
            )
        return ids, labels
