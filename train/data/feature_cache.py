"""The frozen encoder's outputs, each picture's computed once and kept on disk: for runs that see a picture often."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.images.image_loader import ImageError
from qwen_vqa.plugin.images.image_source import open_image
from qwen_vqa.plugin.processor import QwenVqaProcessor
from qwen_vqa.train.data.dataset import ConversationDataset
from qwen_vqa.train.data.screening import image_count
from qwen_vqa.train.model.reference_model import QwenVqaForConditionalGeneration
from qwen_vqa.train.ranks import gathered, processes, rank

FEATURE_FILE, COUNT_FILE = "image_features.bin", "image_features.json"
ENCODED_AT_ONCE = 32
Place = tuple[int, int]  # a sample, and which of its pictures
# numpy has no bfloat16: its bits are kept as integers.
_STORED_AS = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: np.int16}


class FeatureDataset(Dataset):
    """A ConversationDataset's samples with `image_features` [images, tokens, width] in place of `images`.

    They are what the encoder itself would give, in its precision. The file lies in the run's folder; a run that is
    resumed finds it there. The processes of a run each encode a share of the pictures.

    Raises:
        UserError: the data set is of another kind, or a picture is broken.
    """

    def __init__(
        self,
        dataset: Dataset,
        model: QwenVqaForConditionalGeneration,
        processor: QwenVqaProcessor,
        output: Path,
        device: torch.device,
    ) -> None:
        if not isinstance(dataset, ConversationDataset):
            raise UserError("cache_features needs a data set whose pictures are files.")
        self.dataset = dataset
        self.places, pictures = _number_pictures(dataset)
        self.dtype = model.vision_encoder.dtype
        width, features = model.config.feature_width, model.config.features_per_view
        self.file, self.shape = output / FEATURE_FILE, (len(pictures), features, width)
        done = output / COUNT_FILE
        if not gathered(done.is_file() and json.loads(done.read_text()) == list(self.shape))[0]:
            self._encode(pictures, model, processor, device)
            if rank() == 0:
                done.write_text(json.dumps(self.shape))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.dataset.row(index)
        messages = row.messages[: self.dataset.mix.messages[index]]
        sample: dict[str, Any] = {
            "sample_id": f"{self.dataset.names[self.dataset.mix.source[index]]}/{row.sample_id}",
            "messages": messages,
        }
        places = self.places[index]
        if places:
            stored = np.memmap(self.file, _STORED_AS[self.dtype], "r", shape=self.shape)[places]
            sample["image_features"] = torch.from_numpy(stored).view(self.dtype)
        return sample

    def _encode(
        self,
        pictures: list[Place],
        model: QwenVqaForConditionalGeneration,
        processor: QwenVqaProcessor,
        device: torch.device,
    ) -> None:
        model.vision_encoder.to(device)
        if rank() == 0:
            memory = np.memmap(self.file, _STORED_AS[self.dtype], "w+", shape=self.shape)
            print(f"keeping the features of {len(pictures):,} pictures: {memory.nbytes / 1e9:.2f} GB in {self.file}")
        gathered(None)
        memory = np.memmap(self.file, _STORED_AS[self.dtype], "r+", shape=self.shape)
        rounds = range(0, len(pictures), ENCODED_AT_ONCE * processes())
        for place in tqdm(rounds, desc="encoding pictures", disable=rank() > 0):
            start = place + rank() * ENCODED_AT_ONCE
            chunk = pictures[start : start + ENCODED_AT_ONCE]
            faults = gathered(self._encode_some(chunk, start, memory, model, processor, device))
            if any(faults):
                raise UserError(next(fault for fault in faults if fault))
        memory.flush()
        gathered(None)

    def _encode_some(
        self,
        chunk: list[Place],
        start: int,
        memory: np.memmap,
        model: QwenVqaForConditionalGeneration,
        processor: QwenVqaProcessor,
        device: torch.device,
    ) -> str:
        """Write the features of these pictures; what is wrong with one of them, or nothing."""
        if not chunk:
            return ""
        try:
            images = [open_image(self.dataset.row(index).images[position].source) for index, position in chunk]
        except ImageError as error:
            return str(error)
        pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            features = model.get_image_features(pixels.to(device)).cpu()
        words = features.view(torch.int16) if self.dtype == torch.bfloat16 else features
        memory[start : start + len(images)] = words.numpy()
        return ""


def _number_pictures(dataset: ConversationDataset) -> tuple[list[list[int]], list[Place]]:
    """For each sample the numbers of its pictures, and for each number where that picture is first seen."""
    numbers: dict[tuple, int] = {}
    pictures: list[Place] = []
    places = []
    for index in range(len(dataset)):
        row = dataset.row(index)
        own = []
        for position in range(image_count(row.messages[: dataset.mix.messages[index]])):
            picture = row.images[position]
            inside = (int(dataset.mix.source[index]), int(dataset.mix.row[index]), position)
            key = inside if picture.data is not None else (picture.path,)
            if key not in numbers:
                numbers[key] = len(pictures)
                pictures.append((index, position))
            own.append(numbers[key])
        places.append(own)
    return places, pictures
