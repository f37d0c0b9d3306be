"""What the processes of a run share, written by each as JSON; started by torchrun, and in one process by the test."""

import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.train.data import feature_cache, screening
from qwen_vqa.train.data.feature_cache import FeatureDataset
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference
from qwen_vqa.train.ranks import rank
from qwen_vqa.train.train import train
from qwen_vqa.train.training_config import TrainingConfig
from tests.train import releases

SETTINGS = TrainingConfig(batch_size=1, accumulation=1, rank=4, max_steps=4, save_steps=2, precision="float32")


class SpoiltInOneProcess(torch.utils.data.Dataset):
    """Numbers that are none, from the third sample on that the second process takes."""

    def __init__(self, dataset: torch.utils.data.Dataset) -> None:
        self.dataset, self.taken = dataset, 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        self.taken += 1
        sample = self.dataset[index]
        if rank() == 1 and self.taken > 2:
            sample |= {"images": None, "image_features": torch.full((1, 5, 64), float("nan"))}
        return sample


def steps(checkpoint: Path, data: list[str], output: Path) -> dict:
    """Which samples were drawn and who opened which pictures, the features' bytes, and what a NaN led to."""
    opened: list[str] = []
    for module in (screening, feature_cache):
        plain = module.open_image
        module.open_image = lambda source, plain=plain: opened.append(str(source)) or plain(source)
    dataset = releases.prepare(output, *data)
    checked, opened = list(opened), []
    processor = load_processor(checkpoint)
    features = FeatureDataset(dataset, load_reference(checkpoint), processor, output, torch.device("cpu"))
    found = {
        "samples": [features[index]["sample_id"] for index in range(len(features))],
        "messages": dataset.mix.messages.tolist(),
        "checked": checked,
        "features": (output / feature_cache.FEATURE_FILE).read_bytes().hex(),
    }
    started = time.monotonic()
    try:
        train(checkpoint, SpoiltInOneProcess(dataset), output / "spoilt", SETTINGS)
    except UserError as error:
        found["error"] = str(error)
    found["seconds"] = time.monotonic() - started
    return found


if __name__ == "__main__":
    checkpoint, output, *data = sys.argv[1:]
    dist.init_process_group("gloo")
    found = steps(Path(checkpoint), data, Path(output))
    (Path(output) / f"rank-{rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()
