"""Conversations about images to calibrate with and to measure on, from the user's data."""

import hashlib
import json
import random
from collections.abc import Collection, Iterable
from itertools import islice
from pathlib import Path

from PIL import Image

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.images.image_source import is_url, open_image
from qwen_vqa.plugin.processor import QwenVqaProcessor
from qwen_vqa.train.data.collator import ConversationCollator, Sample
from qwen_vqa.train.data.reading import read_data_set
from qwen_vqa.train.data.row import Row
from qwen_vqa.train.data.source import DataSource


class UserSamples:
    """A data set as `train --data` names it, in a seeded order: the first samples calibrate, those behind measure.

    Args:
        processor: pictures are kept as its canvases, which it takes as they are; None keeps them in their own size.

    Raises:
        UserError: it is not there, or not in its format.
    """

    def __init__(self, data: str, seed: int = 0, processor: QwenVqaProcessor | None = None) -> None:
        source = DataSource.parse(data)
        if source.weight is not None:
            raise UserError(f"--data {data}: weight= is for training with several data sets; leave it out.")
        self.processor = processor
        self.name = Path(source.location).stem
        self.rows = read_data_set(source)
        usable = [index for index, fault in enumerate(self.rows["fault"]) if not fault]
        random.Random(f"quantize {seed}").shuffle(usable)
        self.order = usable[: source.samples]

    def calibration(self, number: int) -> list[Sample]:
        """The first `number` samples of the order.

        Raises:
            UserError: there are fewer, or an image of those cannot be opened.
        """
        if number > len(self.order):
            raise UserError(
                f"--samples {number}: {self.name} has only {len(self.order)} that can be used; pass --samples "
                f"{len(self.order)} or fewer, or more data."
            )
        return [self._sample(self._row(index)) for index in self.order[:number]]

    def identities(self, number: int) -> list[str]:
        """Of the first `number` samples of the order."""
        return [identity(self._row(index)) for index in self.order[:number]]

    def held_out(
        self, calibrated: Collection[str], number: int, skills: tuple[str, ...] = ()
    ) -> dict[str, list[Sample]]:
        """Up to `number` samples, under one name, whose identities did not calibrate; a user's data has no skills.

        Raises:
            UserError: none is left.
        """
        rows = (self._row(index) for index in self.order)
        left = list(islice((row for row in rows if identity(row) not in calibrated), number))
        if not left:
            raise UserError(
                f"all of the {len(self.order)} samples of {self.name} calibrated: none is left to measure on. Give "
                "--data with others."
            )
        return {self.name: [self._sample(row) for row in left]}

    def _row(self, index: int) -> Row:
        return Row.from_arrow(self.rows[index])

    def _sample(self, row: Row) -> Sample:
        images = [self._kept(open_image(picture.source)) for picture in row.images]
        return {"sample_id": row.sample_id, "messages": row.messages, "images": images, "answers": row.answers}

    def _kept(self, image: Image.Image) -> Image.Image:
        """A photograph takes a hundred times the memory of its canvas, and hundreds of them are kept for hours."""
        return image if self.processor is None else self.processor.image_processor.shrunk(image)


def identity(row: Row) -> str:
    """The same for the same conversation about pictures of the same names, in whatever file and place it stands."""
    pictures = [
        hashlib.sha256(picture.data).hexdigest()
        if picture.data is not None
        else (picture.path if is_url(picture.path) else Path(picture.path).name)
        for picture in row.images
    ]
    return hashlib.sha256(json.dumps([row.messages, pictures]).encode()).hexdigest()[:16]


def longest_sample(samples: Iterable[Sample], processor: QwenVqaProcessor) -> int:
    """Tokens of the longest, image tokens included.

    Raises:
        UserError: one is longer than the reference takes, or has an answer that the chat template does not reproduce.
    """
    collate, longest = ConversationCollator(processor), 0
    for sample in samples:
        tokens = collate.token_count(sample["messages"], sample["sample_id"])
        if tokens > collate.max_length:
            raise UserError(
                f"sample {sample['sample_id']} has {tokens} tokens, more than {collate.max_length}: shorten it, or "
                "leave it out of --data."
            )
        longest = max(longest, tokens)
    return longest
