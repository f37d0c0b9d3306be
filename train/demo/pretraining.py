"""Stage 1: trains the vision encoder from nothing.

python -m qwen_vqa.train.demo.pretraining --out RUN
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed as dist
from torch import nn

from qwen_vqa.train.demo.demo_flags import ENCODER_STEPS as STEPS
from qwen_vqa.train.demo.encoder import (
    FIRST_SEED,
    VISION,
    EncoderHeads,
    image_processor,
    loss_of,
    make_batch,
    measure,
    new_encoder,
    normalise,
)
from qwen_vqa.train.demo.muon import MuonAndAdamW

BATCH = 192  # pictures a step, over all processes
LEARNING_RATE = 2e-3
WARMUP_STEPS = 100
SECONDS_BETWEEN_SAVES = 120
STEPS_BETWEEN_REPORTS = 100
VALIDATION_PICTURES = 576


def train(out: Path, steps: int = STEPS, seed: int = 0, workers: int = 2) -> Path:
    """Train for `steps`, saving `encoder.pt` in `out` on the way; a second call goes on where it stopped.

    `workers` processes of one thread each share the work and average their gradients: on a busy machine
    that is faster than threads, which wait for each other in every operation.
    """
    file = out / "encoder.pt"
    if file.exists() and torch.load(file, weights_only=True)["step"] >= steps:
        return file
    out.mkdir(parents=True, exist_ok=True)
    (out / "rendezvous").unlink(missing_ok=True)
    torch.multiprocessing.spawn(work, (workers, out, steps, seed), nprocs=workers)
    return file


def work(rank: int, workers: int, out: Path, steps: int, seed: int) -> None:
    """One process's part of the training."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    dist.init_process_group("gloo", f"file://{(out / 'rendezvous').resolve()}", rank=rank, world_size=workers)
    encoder, heads = new_encoder(), EncoderHeads(VISION["hidden_size"])
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = MuonAndAdamW(parameters, encoder.layers, LEARNING_RATE, weight_decay=0.05)
    first_step = load(out / "encoder.pt", encoder, heads, optimizer)
    processor = image_processor()
    validation = [make_batch(processor, range(i, i + 96), True) for i in range(0, VALIDATION_PICTURES, 96)]
    started = saved_at = time.time()
    losses: list[float] = []
    for step in range(first_step, steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * schedule(step, steps)
        seeds = range(FIRST_SEED + step * BATCH, FIRST_SEED + (step + 1) * BATCH)
        batch = make_batch(processor, seeds[rank * BATCH // workers : (rank + 1) * BATCH // workers], False)
        loss = loss_of(heads(encoder(normalise(batch["canvas"]))), batch)
        loss.backward()
        average_gradients(parameters, workers)
        nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if rank == 0 and (step + 1) % STEPS_BETWEEN_REPORTS == 0:
            loss_now = float(np.mean(losses[-STEPS_BETWEEN_REPORTS:]))
            held_out = measure(encoder, heads, validation)
            report(out, step + 1, steps, first_step, time.time() - started, loss_now, held_out)
        if rank == 0 and (time.time() - saved_at > SECONDS_BETWEEN_SAVES or step + 1 == steps):
            save(out / "encoder.pt", encoder, heads, optimizer, step + 1)
            saved_at = time.time()
    dist.destroy_process_group()


def schedule(step: int, steps: int) -> float:
    """Up at first, then flat, then down over the last 40%."""
    return min(1.0, (step + 1) / WARMUP_STEPS, max(0.02, (1 - step / steps) / 0.4))


def average_gradients(parameters: list[nn.Parameter], workers: int) -> None:
    """Each process's gradients become the mean over all."""
    flat = torch.cat([_grad(parameter).flatten() for parameter in parameters])
    dist.all_reduce(flat)
    flat /= workers
    for parameter, grad in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        _grad(parameter).copy_(grad.view_as(parameter))


def _grad(parameter: nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None, "every parameter takes part in the loss"
    return parameter.grad


def report(
    out: Path, step: int, steps: int, first_step: int, seconds: float, loss: float, held_out: dict[str, float]
) -> None:
    """A line for the terminal and for encoder.jsonl."""
    speed = (step - first_step) / seconds
    line: dict[str, Any] = {"step": step, "of": steps, "minutes": round(seconds / 60, 1)}
    line |= {"minutes left": round((steps - step) / speed / 60, 1), "pictures/s": round(speed * BATCH)}
    line |= {"loss": round(loss, 3), "held out": held_out}
    print(json.dumps(line), flush=True)
    with (out / "encoder.jsonl").open("a") as log:
        print(json.dumps(line), file=log)


def load(file: Path, encoder: nn.Module, heads: nn.Module, optimizer: MuonAndAdamW) -> int:
    """Take up a saved run, if there is one; the steps it has done."""
    if not file.exists():
        return 0
    state = torch.load(file, weights_only=True)
    encoder.load_state_dict(state["encoder"])
    heads.load_state_dict(state["heads"])
    optimizer.load_state_dict({"parts": state["optimizers"]})
    return state["step"]


def save(file: Path, encoder: nn.Module, heads: nn.Module, optimizer: MuonAndAdamW, step: int) -> None:
    """Write the run so that a stop in the middle leaves the last one whole."""
    state = {"encoder": encoder.state_dict(), "heads": heads.state_dict(), "step": step}
    torch.save(state | {"optimizers": optimizer.state_dict()["parts"]}, file.with_suffix(".tmp"))
    file.with_suffix(".tmp").replace(file)


def main(argv: list[str] | None = None) -> None:
    """The encoder's stage alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for encoder.pt and its log")
    parser.add_argument("--steps", type=int, default=STEPS, help="of 192 pictures (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    options = parser.parse_args(argv)
    train(options.out, options.steps, workers=options.workers)


if __name__ == "__main__":
    main()
