"""Losses of a few steps with the model's layers sharded over the processes (FSDP2); started by torchrun."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from qwen_vqa.train.data.collator import ConversationCollator
from qwen_vqa.train.model.reference_model import QwenVqaForConditionalGeneration
from qwen_vqa.train.trainer import prepare_model
from qwen_vqa.train.training_config import TrainingConfig
from tests.tiny import picture, tiny_config, tiny_model, tiny_processor, user

STEPS = 3


def losses(sharded: bool) -> list[float]:
    """Of steps on four samples, of which each process takes its share."""
    processor = tiny_processor()
    model = tiny_model(tiny_config(processor)).train()
    torch.manual_seed(0)
    prepare_model(model, TrainingConfig(rank=4, dropout=0))
    if sharded:
        _shard(model)
    answer = {"role": "assistant", "content": "a picture"}
    samples = [{"messages": [user(image, "what?"), answer], "images": [image]} for image in map(picture, range(4))]
    rank, processes = (dist.get_rank(), dist.get_world_size()) if sharded else (0, 1)
    batch = ConversationCollator(processor)(samples[rank::processes])
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    found = []
    for _ in range(STEPS):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach() / processes
        if sharded:
            dist.all_reduce(mean)
        found.append(mean.item())
    return found


def _shard(model: QwenVqaForConditionalGeneration) -> None:
    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.language_model.get_decoder().layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(isinstance(weight, DTensor) for weight in model.parameters())


if __name__ == "__main__":
    dist.init_process_group("gloo")
    found = losses(sharded=True)
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))
    dist.destroy_process_group()
