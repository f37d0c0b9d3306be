"""Asking a checkpoint: the PyTorch reference, greedily, in batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from qwen_vqa.plugin.checkpoint_files import adapter_folders
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.images.image_limits import ImageError
from qwen_vqa.plugin.images.image_source import open_image
from qwen_vqa.plugin.processor import QwenVqaProcessor
from qwen_vqa.train.evaluation.questions import Prompt
from qwen_vqa.train.evaluation.replies import Record, Reply
from qwen_vqa.train.model.compute_device import GIB, chosen_device, device_with_room
from qwen_vqa.train.model.reference_adapter import attach_adapter
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference
from qwen_vqa.train.model.reference_model import QwenVqaForConditionalGeneration


@dataclass(frozen=True)
class CheckpointModel:
    """The reference model and its processor; answers have at most `max_tokens` tokens."""

    model: QwenVqaForConditionalGeneration
    processor: QwenVqaProcessor
    max_tokens: int
    batch_size: int

    @classmethod
    def load(
        cls,
        folder: Path,
        adapter: str | None,
        dtype: torch.dtype | str,
        max_tokens: int,
        batch_size: int,
        device: str = "auto",
    ) -> "CheckpointModel":
        """A checkpoint folder's model; `device` as `--device` takes it.

        Raises:
            UserError: the folder is not a checkpoint, or has no adapter of that name, or there is no such device.
        """
        chosen_device(device)
        model, processor = load_reference(folder, dtype), load_processor(folder)
        if adapter is not None:
            folders = adapter_folders(folder)
            if adapter not in folders:
                names = ", ".join(folders) or "none"
                raise UserError(f"the checkpoint {folder} has no adapter {adapter!r}; it has {names}.")
            model.language_model = attach_adapter(model.language_model, folders[adapter])
        needed = model.get_memory_footprint() + GIB
        model.to(device_with_room(device, needed, "the model", "pass --dtype bfloat16"))
        return cls(model, processor, max_tokens, batch_size)

    def ask(self, prompts: Sequence[Prompt], record: Record) -> None:
        """Call `record` with the reply to each prompt; a picture that cannot be opened is a fault."""
        for start in range(0, len(prompts), self.batch_size):
            opened: list[tuple[Prompt, list[Image.Image]]] = []
            for prompt in prompts[start : start + self.batch_size]:
                try:
                    opened.append((prompt, [open_image(picture.source) for picture in prompt.pictures]))
                except ImageError as error:
                    record(Reply(prompt, fault=str(error)))
            if opened:
                for (prompt, _), answer in zip(opened, self._answers(opened), strict=True):
                    record(Reply(prompt, answer))

    @torch.inference_mode()
    def _answers(self, opened: Sequence[tuple[Prompt, list[Image.Image]]]) -> list[str]:
        texts = [
            self.processor.apply_chat_template(prompt.messages, tokenize=False, add_generation_prompt=True)
            for prompt, _ in opened
        ]
        images = [image for _, pictures in opened for image in pictures]
        inputs = self.processor(
            text=texts, images=images or None, return_tensors="pt", padding=True, padding_side="left"
        ).to(self.model.device)
        # The checkpoint's own penalties and sampling are left out, as they are when a server is asked.
        tokens = self.model.generate(
            **inputs, max_new_tokens=self.max_tokens, do_sample=False, repetition_penalty=1.0, use_cache=True
        )[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
