"""What the encoder learns in stage 1: what stands where, with labels only a renderer can give.

Dense supervision first: each patch names the thing it shows, its colour, its place in the picture, which
digit of its number it is, and whether a thing's centre lies in it; CLS says what the picture counts.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import ViTConfig

from qwen_vqa.plugin.views.image_processor import QwenVqaImageProcessor
from qwen_vqa.plugin.vision.vit import VitEncoder
from qwen_vqa.train.demo.packing import make_packed_scene
from qwen_vqa.train.drawn import drawing
from qwen_vqa.train.drawn.scenes import make_scene
from qwen_vqa.train.model.torch_layers import TorchLayers

VISION: dict[str, Any] = {
    "image_size": 96,
    "patch_size": 12,
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "intermediate_size": 768,
}
MAX_COUNT = 6
VISIBILITIES = ("clear", "dark", "blurred")
FIRST_SEED = 1_000_000_000  # of the encoder's pictures; the language stage and evaluation have their own


class EncoderHeads(nn.Module):
    """Linear read-outs that exist in this stage only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.thing = nn.Linear(width, len(drawing.CLASSES))
        self.colour = nn.Linear(width, len(drawing.COLOUR_NAMES))
        self.index = nn.Linear(width, 4)
        self.place = nn.Linear(width, len(drawing.PLACE_NAMES))
        self.centre = nn.Linear(width, 2)
        self.counts = nn.Linear(width, (len(drawing.CLASSES) - 1) * (MAX_COUNT + 1))
        self.visibility = nn.Linear(width, len(VISIBILITIES))

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """Features [N, 1 + patches, D] to logits a patch [N, patches, ...] and a picture [N, ...]."""
        whole, patches = features[:, 0], features[:, 1:]
        logits = {name: getattr(self, name)(patches) for name in ("thing", "colour", "index", "place", "centre")}
        logits["counts"] = self.counts(whole).unflatten(-1, (-1, MAX_COUNT + 1))
        logits["visibility"] = self.visibility(whole)
        return logits


def make_batch(processor: QwenVqaImageProcessor, seeds: range, held_out: bool) -> dict[str, torch.Tensor]:
    """Canvases uint8 [N, size, size, 3] and labels: half crowded pictures, half scenes users ask about."""
    rows = [
        labelled(make_packed_scene(seed, held_out) if i % 2 else make_scene(seed, held_out), processor)
        for i, seed in enumerate(seeds)
    ]
    columns = [torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)]
    return dict(zip(("canvas", "patches", "counts", "visibility"), columns, strict=True))


def image_processor() -> QwenVqaImageProcessor:
    return QwenVqaImageProcessor(image_size=VISION["image_size"], patch_size=VISION["patch_size"])


def labelled(scene, processor) -> tuple:
    """Canvas, patch labels [5, patches], counts a class, visibility. In a picture too dark nothing stands."""
    picture, marks = drawing.draw(scene)
    if scene.visibility != "clear":
        marks = []
    scale = processor.image_size / max(picture.shape[:2])
    grid = processor.image_size // processor.patch_size
    labels = drawing.patch_labels(marks, scale, grid, processor.patch_size)
    counts = np.bincount([mark.label for mark in marks], minlength=len(drawing.CLASSES))[1:]
    visibility = np.int64(VISIBILITIES.index(scene.visibility))
    return processor.canvas(picture), labels, counts.clip(max=MAX_COUNT), visibility


def normalise(canvas: torch.Tensor) -> torch.Tensor:
    """What the image processor does after the canvas: uint8 [N, S, S, 3] to float [N, 3, S, S] in -1..1."""
    return (canvas.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def loss_of(logits: dict[str, torch.Tensor], batch: dict[str, torch.Tensor]) -> torch.Tensor:
    things, colours, indices, places, centres = batch["patches"].unbind(1)
    nothing_counts_less = torch.ones(len(drawing.CLASSES))
    nothing_counts_less[0] = 0.2
    total = functional.cross_entropy(
        logits["thing"].float().flatten(0, 1),
        things.flatten(),
        weight=nothing_counts_less,
        label_smoothing=0.02,
    )
    for name, target, weight in (
        ("colour", colours, 0.3),
        ("index", indices, 0.3),
        ("place", places, 0.3),
        ("centre", centres, 1.0),
    ):
        total = total + weight * functional.cross_entropy(logits[name].float().flatten(0, 1), target.flatten())
    counts = functional.cross_entropy(logits["counts"].float().flatten(0, 1), batch["counts"].flatten())
    return total + 3 * counts + 0.2 * functional.cross_entropy(logits["visibility"].float(), batch["visibility"])


def new_encoder() -> VitEncoder:
    """An encoder that starts with a sense of place, which a small ViT otherwise spends its budget on.

    Positions start as 2-D sines (Chen et al. 2021, arXiv:2104.02057), and queries and keys as near copies of
    each other, so that patches attend to their neighbours (Trockman and Kolter 2023, arXiv:2305.09828).
    """
    encoder = VitEncoder(ViTConfig(**VISION), TorchLayers(), VitEncoder.usual_features)
    width, grid = VISION["hidden_size"], VISION["image_size"] // VISION["patch_size"]
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.trunc_normal_(encoder.class_embedding, std=0.02)
    encoder.position_embedding.data[0, 1:] = sine_positions(grid, width)
    for layer in encoder.layers:
        attention: Any = layer.attention
        attention.k_proj.weight.data.copy_(attention.q_proj.weight.data + 0.3 * attention.k_proj.weight.data)
        attention.v_proj.weight.data.mul_(0.5)
    return encoder


def sine_positions(grid: int, width: int) -> torch.Tensor:
    """[grid * grid, width]: sines and cosines of the row and of the column."""
    frequencies = math.pi / 2 * torch.logspace(0, -1, width // 4)
    angles = torch.arange(grid)[:, None] * frequencies  # [grid, width / 4]
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # [grid, width / 2]
    rows = waves[:, None].expand(grid, grid, -1)
    columns = waves[None].expand(grid, grid, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1) * 0.7


def accuracies(logits: dict[str, torch.Tensor], batch: dict[str, torch.Tensor]) -> dict[str, float]:
    """Shares right: shapes, emoji and digits by patch; colours; numbers read whole; counts; visibility."""
    things, colours, *_, centres = batch["patches"].unbind(1)
    right = logits["thing"].argmax(-1) == things
    spans = {
        "shape": (drawing.FIRST_SHAPE, drawing.FIRST_EMOJI),
        "emoji": (drawing.FIRST_EMOJI, drawing.FIRST_DIGIT),
        "digit": (drawing.FIRST_DIGIT, len(drawing.CLASSES)),
    }
    at_centre = centres == 1
    shares = {
        name: right[at_centre & (things >= a) & (things < b)].float().mean().item() for name, (a, b) in spans.items()
    }
    coloured = colours > 0
    shares["colour"] = (logits["colour"].argmax(-1) == colours)[coloured].float().mean().item()
    shares["centre"] = (logits["centre"].argmax(-1) == centres).all(-1).float().mean().item()
    shares["counts"] = (logits["counts"].argmax(-1) == batch["counts"]).all(-1).float().mean().item()
    shares["visibility"] = (logits["visibility"].argmax(-1) == batch["visibility"]).float().mean().item()
    return {name: round(100 * value, 1) for name, value in shares.items()}


@torch.no_grad()
def measure(encoder: nn.Module, heads: nn.Module, batches: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    sums: dict[str, list[float]] = {}
    for batch in batches:
        logits = heads(encoder(normalise(batch["canvas"])))
        for name, value in accuracies(logits, batch).items():
            sums.setdefault(name, []).append(value)
    return {name: round(float(np.nanmean(values)), 1) for name, values in sums.items()}
