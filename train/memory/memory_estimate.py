"""How much GPU memory training takes, by arithmetic.

Bytes are counted for autocast in 16 bits: frozen weights in 16 bits (or rounded), what is trained and its two moments
in float32. What a layer keeps for the backward pass is listed in `layer_bytes`. The context of CUDA, the allocator's
gaps and the encoder's activations are not counted, though a trained one keeps them for the backward pass.
"""

from dataclasses import dataclass, replace

import torch
from transformers import Qwen2Config, ViTConfig

from qwen_vqa.plugin.config import QwenVqaConfig
from qwen_vqa.train.model.reference_model import LOGITS_AT_ONCE, QwenVqaForConditionalGeneration
from qwen_vqa.train.trainer import prepare_model
from qwen_vqa.train.training_config import LOAD_IN, TrainingConfig

GIB = 2**30
# Bytes of a rounded weight: int8 with a scale a row; NF4 in blocks of 64, whose scales take 8 bits and one float32 for
# 256 of them (double quantisation).
ROUNDED = {"full": 2.0, "8bit": 1.0, "4bit": 0.5 + 1 / 64 + 4 / (64 * 256)}
LOGIT_BYTES = 12  # log-probabilities, their gradient and the logits' own, in float32


@dataclass(frozen=True)
class WeightCounts:
    """Numbers of weights: frozen ones that can be rounded and that cannot, trained ones; and a layer's dimensions."""

    roundable: int
    whole: int
    trained: int
    largest: int
    lora_inputs: int
    """Widths of the inputs of a layer's LoRAs, summed."""
    encoder: int
    """Of `whole`, the vision encoder's that are frozen."""


def parts_of(config: QwenVqaConfig, training: TrainingConfig) -> WeightCounts:
    """Counted in the model itself, without its weights."""
    with torch.device("meta"):
        model = QwenVqaForConditionalGeneration(config)
        prepare_model(model, training)
    linear = [
        module.weight.numel()
        for name, module in model.language_model.named_modules()
        if isinstance(module, torch.nn.Linear) and "lora_" not in name and "lm_head" not in name
    ]
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    everything = sum(weight.numel() for weight in model.parameters())
    layer = model.language_model.get_decoder().layers[0]
    inputs = sum(module.in_features for name, module in layer.named_modules() if name.endswith("lora_A.default"))
    encoder = sum(weight.numel() for weight in model.vision_encoder.parameters() if not weight.requires_grad)
    return WeightCounts(sum(linear), everything - sum(linear) - trained, trained, max(linear), inputs, encoder)


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step at its peak."""

    weights: int
    trained: int
    gradients: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of it. The layers' passing tensors and the logits' are not there at the same time."""
        return self.weights + self.trained + self.gradients + self.activations + self.logits


def memory_of(
    config: QwenVqaConfig, training: TrainingConfig, length: int, labelled: int, mask_bytes: int = 1
) -> Memory:
    """Of a step with `length` tokens a sample, `labelled` of them counted in the loss.

    `mask_bytes` are those of dropout's mask, an input: 1 on a GPU, 4 on a CPU.
    """
    parts, text = parts_of(config, training), config.text_config
    tokens = training.batch_size * length
    layers = text.num_hidden_layers
    kept = tokens * layer_bytes(config, training, parts, length, mask_bytes)
    passing = tokens * (3 * 2 * text.intermediate_size + 2 * 2 * text.hidden_size)  # gradients within the MLP
    inputs = tokens * 2 * text.hidden_size
    if training.gradient_checkpointing:
        standing, passing = layers * inputs, kept + passing
    else:
        standing = inputs + layers * kept
    passing += 0 if training.load_in == "full" else 2 * parts.largest  # the weight that is at work, in 16 bits
    at_once = min(LOGITS_AT_ONCE, training.batch_size * labelled)
    logits = LOGIT_BYTES * at_once * text.vocab_size
    return Memory(
        weights=round(parts.roundable * ROUNDED[training.load_in])
        + 2 * parts.whole
        + (2 * parts.encoder if config.vision_in_float32 else 0),
        trained=(4 + 8) * parts.trained,
        gradients=(4 + 2) * parts.trained,  # and autocast's copies in 16 bits
        activations=standing + max(0, passing - logits),
        logits=logits,
    )


def layer_bytes(
    config: QwenVqaConfig, training: TrainingConfig, parts: WeightCounts, length: int, mask_bytes: int = 1
) -> int:
    """What a layer keeps for its backward pass, a token.

    Both norms' inputs in float32; queries and attention's output, keys and values; attention's mask (a row of it);
    gate, its SiLU and up; and for each LoRA its input and dropout's mask. A frozen matrix keeps nothing.
    """
    text = config.text_config
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    norms, queries = 2 * 4 * text.hidden_size, 2 * 2 * head * text.num_attention_heads
    keys, mask, mlp = 2 * 2 * head * text.num_key_value_heads, 2 * length, 3 * 2 * text.intermediate_size
    lora = (2 + (mask_bytes if training.dropout else 0)) * parts.lora_inputs
    return norms + queries + keys + mask + mlp + lora


def full_model() -> QwenVqaConfig:
    """google/vit-base-patch32-384 and Qwen/Qwen2.5-3B-Instruct, from their config.json.

    As `assemble` puts them together: the language model in 16 bits, the encoder in float32.
    """
    text = Qwen2Config(
        hidden_size=2048,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=2,
        intermediate_size=11008,
        vocab_size=151936,
        tie_word_embeddings=True,
    )
    vision = ViTConfig(image_size=384, patch_size=32)
    return QwenVqaConfig(vision, text, {"hidden_size": 2048}, image_token_id=151655, vision_in_float32=True)


def table(config: QwenVqaConfig, training: TrainingConfig, lengths: list[int], labelled: int, card: float) -> str:
    """A row for each length and each way to hold the language model, in GiB, and whether it fits `card` GiB."""
    columns = ("weights", "trained", "gradients", "activations", "logits", "total")
    lines = [f"{'length':>6}  {'language model':<14}" + "".join(f"{name:>13}" for name in columns)]
    for length in lengths:
        for load_in in LOAD_IN:
            memory = memory_of(config, replace(training, load_in=load_in), length, min(labelled, length))
            cells = "".join(f"{getattr(memory, name) / GIB:>13.2f}" for name in columns)
            name = {"full": "fp16 or bf16", "8bit": "8-bit", "4bit": "4-bit"}[load_in]
            fits = "fits" if memory.total <= card * GIB else "does not fit"
            lines.append(f"{length:>6}  {name:<14}{cells}  {fits}")
    return "\n".join(lines)
