"""Operations of one training step, counted while it runs."""

from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from qwen_vqa.train.data.collator import ConversationCollator
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference
from qwen_vqa.train.trainer import prepare_model
from qwen_vqa.train.training_config import TrainingConfig


def step_flops(base: Path, samples: list[dict], config: TrainingConfig) -> int:
    """Multiplications and additions of matrix products, forward and backward, for a batch of samples with pictures.

    The frozen encoder is left out, as with cached features: it does the same work whatever is trained.
    """
    model = load_reference(base, torch.float32)
    prepare_model(model.train(), config)
    batch = ConversationCollator(load_processor(base), config.max_length)(samples)
    batch["image_features"] = model.get_image_features(batch.pop("pixel_values"))
    # Attention as plain matrix products: the counter does not know the CPU's fused kernel.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**batch).loss.backward()
    return counter.get_total_flops()
