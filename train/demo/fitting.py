"""Runs the project's trainer on cached features, in several processes where there are several cores."""

import os
import socket
from dataclasses import replace
from pathlib import Path

import torch
from torch import distributed as dist
from torch.utils.data import Dataset

from qwen_vqa.train.data.collator import ConversationCollator
from qwen_vqa.train.demo.muon import MuonAndAdamW
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference
from qwen_vqa.train.model.reference_model import QwenVqaForConditionalGeneration
from qwen_vqa.train.trainer import QwenVqaTrainer, load_trained, prepare_model, save_trained
from qwen_vqa.train.training_arguments import training_arguments
from qwen_vqa.train.training_config import TrainingConfig

RESULT = "result"


def fit(
    base: Path, dataset: Dataset, config: TrainingConfig, run: Path, workers: int
) -> QwenVqaForConditionalGeneration:
    """Train what `config` says from the checkpoint `base`; goes on from the last checkpoint in `run`.

    All of a language model learns from nothing with Muon and AdamW. An adapter learns alone, with the
    trainer's own optimizer: the connector under it stays as it is.
    """
    if not (run / RESULT).is_dir():
        torch.multiprocessing.spawn(work, (workers, free_port(), base, dataset, config, run), nprocs=workers)
    model = load_reference(base).float()
    prepare_model(model, config)
    load_trained(model, run / RESULT)
    return model.eval()


def work(rank: int, workers: int, port: int, base: Path, dataset: Dataset, config: TrainingConfig, run: Path) -> None:
    """One process's part: a share of each batch, on one thread."""
    os.environ["OMP_NUM_THREADS"] = "1"  # accelerate would take all cores for each process
    torch.set_num_threads(1)
    if workers > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": workers, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    torch.manual_seed(config.seed)  # an adapter's initial weights
    model, processor = load_reference(base).float(), load_processor(base)
    prepare_model(model, config)
    optimizer = None
    if config.full_language_model:
        layers = [*model.language_model.get_decoder().layers, model.connector]
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = MuonAndAdamW(trained, layers, config.learning_rate, config.weight_decay)
    else:
        model.connector.requires_grad_(False)
    arguments = training_arguments(
        replace(config, batch_size=config.batch_size // workers),
        run,
        logging_steps=20,
        train_sampling_strategy="sequential",  # samples are drawn by chance already; batches are of one length
        ddp_backend="gloo" if workers > 1 else None,
        ddp_find_unused_parameters=False,
    )
    trainer = QwenVqaTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=ConversationCollator(processor, config.max_length),
        processing_class=processor,
        config=config,
        optimizers=(optimizer, None),
    )
    trainer.train(resume_from_checkpoint=any(run.glob("checkpoint-*")) or None)
    if rank == 0:
        (run / RESULT).mkdir()
        save_trained(trainer.accelerator.unwrap_model(trainer.model), run / RESULT)
    if workers > 1:
        dist.destroy_process_group()


def free_port() -> int:
    """A port that nobody listens on, for the processes to meet at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
