"""Stage 1: trains the vision encoder from nothing.

python -m qwen_vqa.train.demo.pretraining --out RUN --minutes 50
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import distributed as dist
from torch import nn

from qwen_vqa.train.demo.encoder import (
    BATCH,
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

LEARNING_RATE = 2e-3
WARMUP_STEPS = 100
SECONDS_BETWEEN_SAVES = 120


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


def optimizers(encoder: nn.Module, heads: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the rest."""
    matrices = [p for p in encoder.layers.parameters() if p.ndim == 2]
    inside = {id(p) for p in matrices}
    rest = [p for p in [*encoder.parameters(), *heads.parameters()] if id(p) not in inside]
    muon = torch.optim.Muon(matrices, lr=LEARNING_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(rest, lr=LEARNING_RATE, weight_decay=0.01, betas=(0.9, 0.98))]


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
