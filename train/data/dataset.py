"""The samples of a run: conversations from Arrow files, their pictures opened when a sample is asked for."""

from collections.abc import Sequence
from typing import Any

import datasets
from torch.utils.data import Dataset

from qwen_vqa.plugin.images.image_source import open_image
from qwen_vqa.train.data.mixing import Mix
from qwen_vqa.train.data.row import Row
from qwen_vqa.train.data.screening import image_count


class ConversationDataset(Dataset):
    """A mix of data sets, in the mix's order.

    Args:
        names: of the data sets.
        data_sets: their rows (see `train/data/row.py`).
        mix: which rows, and how much of each.
    """

    def __init__(self, names: Sequence[str], data_sets: Sequence[datasets.Dataset], mix: Mix) -> None:
        self.names, self.data_sets, self.mix = names, data_sets, mix

    def __len__(self) -> int:
        return len(self.mix.row)

    def row(self, index: int) -> Row:
        """The sample's whole row, without its pictures opened."""
        return Row.from_arrow(self.data_sets[self.mix.source[index]][int(self.mix.row[index])])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`messages` and `images` (RGB pictures in reading order); `sample_id`, which begins with the data set's name;
        and for evaluation `data_set`, `question_id`, `answers` and `answer_type`.

        Raises:
            ImageError: a picture that was there when the run began is gone or broken.
        """
        row, name = self.row(index), self.names[self.mix.source[index]]
        messages = row.messages[: self.mix.messages[index]]
        return {
            "sample_id": f"{name}/{row.sample_id}",
            "messages": messages,
            "images": [open_image(picture.source) for picture in row.images[: image_count(messages)]],
            "data_set": name,
            "question_id": row.question_id,
            "answers": list(row.answers),
            "answer_type": row.answer_type,
        }
