"""Stage 3: a LoRA adapter on the finished language model, which makes it answer in sentences.

Rank 16 on the language model alone: connector and encoder stay as they are, so it is served as it is.
"""

import json
import shutil
from pathlib import Path

from qwen_vqa.plugin.checkpoint_files import ADAPTER_FOLDER
from qwen_vqa.train.demo.fitting import fit
from qwen_vqa.train.demo.language import FeatureConversations, Features
from qwen_vqa.train.drawn.sentences import SENTENCES, make_sentences_conversation
from qwen_vqa.train.training_config import TrainingConfig

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def train_adapter(checkpoint: Path, features: Features, out: Path, steps: int, seed: int = 0, workers: int = 2) -> Path:
    """Train the adapter and put it into the checkpoint's adapters folder."""
    config = TrainingConfig(
        learning_rate=3e-3,
        connector_learning_rate=3e-3,
        rank=16,
        alpha=32,
        dropout=0.0,
        target_modules=TARGETS,
        batch_size=32,
        accumulation=1,
        max_steps=steps,
        precision="float32",
        save_steps=100,
        seed=seed,
    )
    dataset = FeatureConversations(features, steps * config.batch_size, make_sentences_conversation, SENTENCES)
    model = fit(checkpoint, dataset, config, out / SENTENCES, workers)
    folder = checkpoint / ADAPTER_FOLDER / SENTENCES
    shutil.rmtree(folder, ignore_errors=True)
    model.language_model.bfloat16().save_pretrained(folder)
    config_file = folder / "adapter_config.json"
    fields = json.loads(config_file.read_text()) | {"base_model_name_or_path": None}
    config_file.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
    (folder / "README.md").unlink(missing_ok=True)
    return folder
