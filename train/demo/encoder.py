"""Stage 1: the vision encoder learns what stands where, with labels only a renderer can give.

    python -m qwen_vqa.train.demo.encoder --out RUN --minutes 50

Dense supervision first: each patch names the thing it shows, its colour, its place in the picture, which
digit of its number it is, and whether a thing's centre lies in it; CLS says what the picture counts.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional
from transformers import ViTConfig

from qwen_vqa.plugin.image_processor import QwenVqaImageProcessor
from qwen_vqa.train.demo import drawing
from qwen_vqa.train.demo.packing import make_packed_scene
from qwen_vqa.train.demo.scenes import make_scene
from qwen_vqa.train.vision_encoder import VisionEncoder

VISION = {
    "image_size": 96,
    "patch_size": 12,
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "intermediate_size": 768,
}
MAX_COUNT = 6
VISIBILITIES = ("clear", "dark", "blurred")
BATCH = 96  # pictures a process and step
LEARNING_RATE = 2e-3
WARMUP_STEPS = 100
SECONDS_BETWEEN_SAVES = 120
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


def new_encoder() -> VisionEncoder:
    """An encoder that starts with a sense of place, which a small ViT otherwise spends its budget on.

    Positions start as 2-D sines (Chen et al. 2021, arXiv:2104.02057), and queries and keys as near copies of
    each other, so that patches attend to their neighbours (Trockman and Kolter 2023, arXiv:2305.09828).
    """
    encoder = VisionEncoder(ViTConfig(**VISION))
    width, grid = VISION["hidden_size"], VISION["image_size"] // VISION["patch_size"]
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.trunc_normal_(encoder.class_embedding, std=0.02)
    encoder.position_embedding.data[0, 1:] = sine_positions(grid, width)
    for layer in encoder.layers:
        attention = layer.attention
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


def optimizers(encoder: nn.Module, heads: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the rest."""
    matrices = [p for p in encoder.layers.parameters() if p.ndim == 2]
    inside = {id(p) for p in matrices}
    rest = [p for p in [*encoder.parameters(), *heads.parameters()] if id(p) not in inside]
    muon = torch.optim.Muon(matrices, lr=LEARNING_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(rest, lr=LEARNING_RATE, weight_decay=0.01, betas=(0.9, 0.98))]


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


def train(out: Path, minutes: float, seed: int = 0, workers: int = 2) -> Path:
    """Train for `minutes`, saving `encoder.pt` in `out` on the way; a second call goes on where it stopped.

    `workers` processes of one thread each share the work and average their gradients: on a busy machine
    that is faster than threads, which wait for each other in every operation.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "rendezvous").unlink(missing_ok=True)
    torch.multiprocessing.spawn(work, (workers, out, minutes, seed), nprocs=workers)
    return out / "encoder.pt"


def work(rank: int, workers: int, out: Path, minutes: float, seed: int) -> None:
    """One process's part of the training."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    dist.init_process_group("gloo", f"file://{(out / 'rendezvous').resolve()}", rank=rank, world_size=workers)
    encoder, heads = new_encoder(), EncoderHeads(VISION["hidden_size"])
    steppers = optimizers(encoder, heads)
    parameters = [*encoder.parameters(), *heads.parameters()]
    step, spent = load(out / "encoder.pt", encoder, heads, steppers)
    processor = image_processor()
    validation = [make_batch(processor, range(i * BATCH, (i + 1) * BATCH), True) for i in range(6)]
    started, saved_at, losses = time.time() - spent, time.time(), []
    first_step, first_time = step, time.time()
    while (progress := shared_progress(started, minutes)) < 1:
        rate = LEARNING_RATE * min(1, (step + 1) / WARMUP_STEPS) * schedule(progress)
        for stepper in steppers:
            for group in stepper.param_groups:
                group["lr"] = rate
        first = FIRST_SEED + (step * workers + rank) * BATCH
        batch = make_batch(processor, range(first, first + BATCH), False)
        loss = loss_of(heads(encoder(normalise(batch["canvas"]))), batch)
        loss.backward()
        average_gradients(parameters, workers)
        nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad(set_to_none=True)
        step += 1
        losses.append(loss.item())
        if rank == 0 and step % 100 == 0:
            speed = (step - first_step) * BATCH * workers / (time.time() - first_time)
            held_out = measure(encoder, heads, validation)
            report(out, step, progress * minutes, losses[-100:], speed, held_out)
        if rank == 0 and time.time() - saved_at > SECONDS_BETWEEN_SAVES:
            save(out / "encoder.pt", encoder, heads, steppers, step, time.time() - started)
            saved_at = time.time()
    if rank == 0:
        save(out / "encoder.pt", encoder, heads, steppers, step, time.time() - started)
    dist.destroy_process_group()


def shared_progress(started: float, minutes: float) -> float:
    """The share of the time that is over by the first process's clock."""
    progress = torch.tensor((time.time() - started) / (minutes * 60), dtype=torch.float64)
    dist.broadcast(progress, 0)
    return progress.item()


def average_gradients(parameters: list[nn.Parameter], workers: int) -> None:
    flat = torch.cat([parameter.grad.flatten() for parameter in parameters])
    dist.all_reduce(flat)
    flat /= workers
    for parameter, grad in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad.copy_(grad.view_as(parameter))


def report(out: Path, step: int, minutes: float, losses: list[float], speed: float, held_out: dict) -> None:
    line = {"step": step, "minutes": round(minutes, 1), "loss": round(float(np.mean(losses)), 3)}
    line |= {"pictures/s": round(speed), "held out": held_out}
    print(json.dumps(line), flush=True)
    with (out / "encoder.jsonl").open("a") as log:
        print(json.dumps(line), file=log)


def schedule(progress: float) -> float:
    """Flat, then down over the last 40%."""
    return min(1.0, max(0.02, (1 - progress) / 0.4))


def load(file: Path, encoder, heads, steppers) -> tuple[int, float]:
    """Take up a saved run, if there is one; its steps and seconds so far."""
    if not file.exists():
        return 0, 0.0
    state = torch.load(file, weights_only=True)
    encoder.load_state_dict(state["encoder"])
    heads.load_state_dict(state["heads"])
    for stepper, saved in zip(steppers, state["optimizers"], strict=True):
        stepper.load_state_dict(saved)
    return state["step"], state["seconds"]


def save(file: Path, encoder, heads, steppers, step: int, seconds: float) -> None:
    state = {"encoder": encoder.state_dict(), "heads": heads.state_dict(), "step": step, "seconds": seconds}
    state["optimizers"] = [stepper.state_dict() for stepper in steppers]
    torch.save(state, file.with_suffix(".tmp"))
    file.with_suffix(".tmp").replace(file)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for encoder.pt and its log")
    parser.add_argument("--minutes", type=float, default=50, help="wall-clock budget (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    options = parser.parse_args(argv)
    train(options.out, options.minutes, workers=options.workers)


if __name__ == "__main__":
    main()
