"""Stage 2: connector and language model learn to answer from the frozen encoder's features.

The encoder does not change any more, so each picture is encoded once and its features are kept; the
training itself is the project's own trainer.
"""

import functools
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import Qwen2Config, ViTConfig

from qwen_vqa.plugin.chat.chat_template import chat_template
from qwen_vqa.plugin.config import QwenVqaConfig
from qwen_vqa.plugin.processor import QwenVqaProcessor
from qwen_vqa.train.demo.encoder import VISION, image_processor, normalise
from qwen_vqa.train.demo.fitting import fit
from qwen_vqa.train.demo.tokenizer import build_tokenizer
from qwen_vqa.train.drawn.conversations import DrawnConversation, make_conversation
from qwen_vqa.train.drawn.drawing import draw
from qwen_vqa.train.drawn.scenes import Scene, make_scene
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference, save_checkpoint
from qwen_vqa.train.model.reference_model import QwenVqaForConditionalGeneration
from qwen_vqa.train.training_config import TrainingConfig

TEXT: dict[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
FIRST_SEED = 2_000_000_000  # of this stage's pictures
ENCODED_AT_ONCE = 256
BASE = "base"  # what the stage begins with
SEVERAL_EVERY, MOST_PICTURES = 8, 10  # every eighth batch is of conversations about three to ten pictures


def new_model(encoder_file: Path) -> tuple[QwenVqaForConditionalGeneration, QwenVqaProcessor]:
    """The trained encoder under an untrained connector and language model."""
    tokenizer = build_tokenizer()
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        **TEXT,
    )
    config = QwenVqaConfig(
        vision_config=ViTConfig(**VISION),
        text_config=text,
        image_token_id=tokenizer.get_vocab()["<|image_pad|>"],
    )
    model = QwenVqaForConditionalGeneration(config)
    model.vision_encoder.load_state_dict(torch.load(encoder_file, weights_only=True)["encoder"])
    processor = QwenVqaProcessor(image_processor(), tokenizer, chat_template=chat_template("inline", ""))
    return model, processor


class Features:
    """The frozen encoder's output for the scenes of `seeds`, bfloat16 on disk as 16-bit words."""

    def __init__(self, file: Path, seeds: range) -> None:
        tokens = (VISION["image_size"] // VISION["patch_size"]) ** 2 + 1
        self.file, self.seeds, self.shape = file, seeds, (len(seeds), tokens, VISION["hidden_size"])

    def make(self, encoder: torch.nn.Module) -> None:
        """Draw and encode every picture."""
        memory = np.memmap(self.file.with_suffix(".part"), np.int16, "w+", shape=self.shape)
        processor, started = image_processor(), time.time()
        for start in range(0, len(self.seeds), ENCODED_AT_ONCE):
            chunk = self.seeds[start : start + ENCODED_AT_ONCE]
            canvases = np.stack([processor.canvas(draw(make_scene(seed))[0]) for seed in chunk])
            with torch.no_grad():
                features = encoder(normalise(torch.from_numpy(canvases))).bfloat16()
            memory[start : start + len(chunk)] = features.view(torch.int16).numpy()
            done, elapsed = start + len(chunk), time.time() - started
            if start // ENCODED_AT_ONCE % 20 == 0 or done == len(self.seeds):
                left = elapsed / done * (len(self.seeds) - done)
                print(
                    f"encoded {done:,} of {len(self.seeds):,} pictures, {elapsed:.0f} s, {left:.0f} s left", flush=True
                )
        memory.flush()
        self.file.with_suffix(".part").replace(self.file)

    def open(self) -> torch.Tensor:
        """[pictures, tokens, width], bfloat16."""
        words = torch.from_numpy(np.memmap(self.file, np.int16, "c", shape=self.shape))
        return words.view(torch.bfloat16)


class FeatureConversations(Dataset):
    """`length` conversations about cached pictures; the trainer's samples, with features in place of images."""

    def __init__(
        self, features: Features, length: int, make=make_conversation, name: str = "language", several: int = 0
    ) -> None:
        self.features, self.length, self.make, self.name = features, length, make, name
        self.several = several  # samples a batch, where every eighth batch is to be about several pictures

    def __len__(self) -> int:
        return self.length

    @functools.cached_property
    def memory(self) -> torch.Tensor:
        """The features, opened by each process for itself."""
        return self.features.open()

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = random.Random(f"{self.name} {index}")
        others = [rng.randrange(len(self.features.seeds)) for _ in range(self.pictures_of(index) - 1)]
        pictures = [index % len(self.features.seeds), *others]
        scenes: list[Scene] = [make_scene(self.features.seeds[picture]) for picture in pictures]
        conversation: DrawnConversation = self.make(rng, scenes)
        shown = [pictures[position] for position in conversation.scenes]
        sample: dict[str, Any] = {"sample_id": str(index), "messages": conversation.messages}
        if shown:
            sample["image_features"] = self.memory[shown].float()
        return sample

    def pictures_of(self, index: int) -> int:
        """How many the conversation may show: one number for all of a batch, as the shorter are padded."""
        batch = index // self.several if self.several else 1
        return 2 if batch % SEVERAL_EVERY else random.Random(f"{self.name} batch {batch}").randint(3, MOST_PICTURES)


def train_language(
    encoder_file: Path | None,
    out: Path,
    pictures: int,
    steps: int,
    seed: int = 0,
    workers: int = 2,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
) -> Path:
    """Encode `pictures`, train for `steps`, and return the finished checkpoint folder in `out`.

    Without an `encoder_file` the checkpoint in `out`/base goes on.
    """
    out.mkdir(parents=True, exist_ok=True)
    base, run, final = out / BASE, out / "language", out / "checkpoint"
    if encoder_file and not (base / "config.json").exists():
        torch.manual_seed(seed)
        save_checkpoint(base, *new_model(encoder_file))
    model, processor = load_reference(base, torch.float32), load_processor(base)
    features = stage_features(out, pictures)
    if not features.file.exists():
        features.make(model.vision_encoder)
    config = TrainingConfig(
        learning_rate=learning_rate,
        connector_learning_rate=learning_rate,
        rank=0,
        full_language_model=True,
        batch_size=batch_size,
        accumulation=1,
        max_steps=steps,
        weight_decay=0.05,
        precision="float32",
        save_steps=100,
        seed=seed,
    )
    dataset = FeatureConversations(features, steps * batch_size, several=batch_size)
    model = fit(base, dataset, config, run, workers).to(torch.bfloat16)
    model.config.use_cache = True
    for part in (model.config.text_config, model.config.vision_config):
        part.dtype = torch.bfloat16
    save_checkpoint(final, model, processor)
    return final


def stage_features(out: Path, pictures: int) -> Features:
    """The features of this stage's pictures, kept in `out`."""
    return Features(out / "features.bin", range(FIRST_SEED, FIRST_SEED + pictures))
