"""Small random models in the real checkpoint format, and pictures to ask them about."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    Dinov2WithRegistersConfig,
    LlamaConfig,
    Qwen2Config,
    SiglipVisionConfig,
    ViTConfig,
)

from qwen_vqa.plugin.chat.chat_template import ImagePosition, chat_template
from qwen_vqa.plugin.config import QwenVqaConfig
from qwen_vqa.plugin.processor import QwenVqaProcessor
from qwen_vqa.plugin.views.image_processor import QwenVqaImageProcessor
from qwen_vqa.train.model.reference_checkpoint import load_reference, save_checkpoint
from qwen_vqa.train.model.reference_model import QwenVqaForConditionalGeneration

REPOSITORY = Path(__file__).parents[1]
DEMO = REPOSITORY / "serving" / "demo_checkpoint"
TEXT_CONFIGS = {"qwen2": Qwen2Config, "llama": LlamaConfig}
VISION_CONFIGS = {
    "vit": ViTConfig,
    "clip": CLIPVisionConfig,
    "siglip": SiglipVisionConfig,
    "dinov2": Dinov2WithRegistersConfig,
}
PATCH_SIZES = {"vit": 32, "clip": 14, "siglip": 14, "dinov2": 16}  # 14 leaves 8 pixels over


def tiny_processor(image_position: ImagePosition = "inline") -> QwenVqaProcessor:
    """The demo's tokenizer with a 64-pixel, four-patch image processor."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    return QwenVqaProcessor(QwenVqaImageProcessor(64, 32), tokenizer, chat_template(image_position))


def tiny_config(
    processor: QwenVqaProcessor,
    text_type: str = "qwen2",
    tied: bool = True,
    intermediate: int = 192,
    vocabulary: int | None = None,
    vision_type: str = "vit",
    connector: dict[str, Any] | None = None,
    views: dict[str, Any] | None = None,
) -> QwenVqaConfig:
    """Two layers each; head sizes that vLLM's CPU attention has. The vocabulary is the tokenizer's, if not larger."""
    return QwenVqaConfig(
        VISION_CONFIGS[vision_type](
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=96,
            image_size=64,
            patch_size=PATCH_SIZES[vision_type],
        ),
        TEXT_CONFIGS[text_type](
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=intermediate,
            vocab_size=vocabulary or len(processor.tokenizer),
            max_position_embeddings=1024,
            tie_word_embeddings=tied,
            bos_token_id=None,
            eos_token_id=processor.tokenizer.convert_tokens_to_ids("<|im_end|>"),
            pad_token_id=processor.tokenizer.pad_token_id,
        ),
        {"hidden_size": 96, **(connector or {})},
        image_token_id=processor.image_token_id,
        views=views,
    )


def tiny_model(config: QwenVqaConfig, seed: int = 0) -> QwenVqaForConditionalGeneration:
    """Random weights large enough that answers depend on every part, images included."""
    torch.manual_seed(seed)
    model = QwenVqaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, 0.5 if "position_embedding" in name else 0.12)
    return model


def make_checkpoint(
    folder: Path,
    text_type: str = "qwen2",
    tied: bool = True,
    image_position: ImagePosition = "inline",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    intermediate: int = 192,
    vocabulary: int | None = None,
    vision_in_float32: bool = False,
    vision_type: str = "vit",
    connector: dict[str, Any] | None = None,
    views: dict[str, Any] | None = None,
) -> Path:
    """A tiny checkpoint folder."""
    processor = tiny_processor(image_position)
    config = tiny_config(processor, text_type, tied, intermediate, vocabulary, vision_type, connector, views)
    processor.image_processor = QwenVqaImageProcessor(
        64, PATCH_SIZES[vision_type], tokens_per_view=config.tokens_per_view, views=views
    )
    config.vision_in_float32 = vision_in_float32
    model = tiny_model(config, seed)
    model.to_float_type(dtype)
    save_checkpoint(folder, model, processor)
    return folder


def make_adapter(checkpoint: Path, folder: Path, seed: int = 1, rank: int = 4) -> Path:
    """A LoRA on attention and MLP of the checkpoint's language model, large enough to change answers."""
    torch.manual_seed(seed)
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    language_model = load_reference(checkpoint, torch.float32).language_model
    peft_model = get_peft_model(
        language_model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=modules, task_type="CAUSAL_LM")
    )
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.15)
    peft_model.save_pretrained(folder)
    return folder


def picture(seed: int, width: int = 90, height: int = 60) -> Image.Image:
    """Coloured blocks: a picture that survives scaling."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)


def user(*parts: str | Image.Image) -> dict:
    """A user turn of texts and images in this order, for the reference's chat template."""
    content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts]
    return {"role": "user", "content": content}
