"""Checkpoints of the shapes that are measured, with random weights where none can be had.

python -m qwen_vqa.benchmarks.machine.model_shapes 0.5b runs/0.5b
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, Qwen2Config, ViTConfig
from transformers.initialization import no_init_weights

from qwen_vqa.benchmarks.script import run
from qwen_vqa.plugin.chat.chat_format import CHATML
from qwen_vqa.plugin.chat.chat_template import chat_template
from qwen_vqa.plugin.command.command_parser import seed_number
from qwen_vqa.plugin.config import QwenVqaConfig
from qwen_vqa.plugin.processor import QwenVqaProcessor
from qwen_vqa.plugin.views.image_processor import QwenVqaImageProcessor
from qwen_vqa.serving import DEMO_CHECKPOINT
from qwen_vqa.train.model.reference_checkpoint import save_checkpoint
from qwen_vqa.train.model.reference_model import QwenVqaForConditionalGeneration


@dataclass(frozen=True)
class Shape:
    """A language model's dimensions; the encoder beside it is google/vit-base-patch32-384's, or its first layers."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int = 151_936
    encoder_layers: int = 12


# Of Qwen2.5-0.5B-Instruct's and Qwen2.5-3B-Instruct's config.json; both have tied embeddings.
SHAPES = {"0.5b": Shape(896, 24, 14, 2, 4864), "3b": Shape(2048, 36, 16, 2, 11008)}


def shape_config(shape: Shape, processor: QwenVqaProcessor) -> QwenVqaConfig:
    """The configuration of a shape, with the demo's tokenizer in the full vocabulary."""
    return QwenVqaConfig(
        ViTConfig(image_size=384, patch_size=32, num_hidden_layers=shape.encoder_layers),
        Qwen2Config(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            max_position_embeddings=32768,
            rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
            rms_norm_eps=1e-6,
            tie_word_embeddings=True,
            max_window_layers=shape.layers,
            eos_token_id=processor.tokenizer.convert_tokens_to_ids(CHATML.turn_end),
        ),
        image_token_id=processor.image_token_id,
    )


def random_model(config: QwenVqaConfig, seed: int) -> QwenVqaForConditionalGeneration:
    """Random bfloat16 weights of the size of trained ones."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with no_init_weights():
            model = QwenVqaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(0 if name.endswith("bias") else 1)
            else:
                parameter.normal_(0, 0.06 if "embed" in name else 0.02, generator=generator)
    model.tie_weights()  # no_init_weights leaves that out, and the embedding would be stored twice
    return model


def answer_in_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Leave logits to tokens that are text on their own: servers send nothing for others, and no client could tell
    when they came. The embedding is tied, and other rows of it are zero."""
    texts = tokenizer.batch_decode([[number] for number in range(len(tokenizer))], skip_special_tokens=True)
    rows = [number for number, text in enumerate(texts) if text.strip() and text.isprintable() and text.isascii()]
    weight: torch.Tensor = model.get_input_embeddings().get_parameter("weight")
    with torch.no_grad():
        kept = weight[rows].clone()
        weight.zero_()
        weight[rows] = kept


def shape_checkpoint(name: str, folder: Path, seed: int = 0) -> Path:
    """The folder of a shape, made if it is not there; `demo` is the bundled checkpoint itself."""
    if name == "demo":
        return DEMO_CHECKPOINT
    if not (folder / "config.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(DEMO_CHECKPOINT)
        processor = QwenVqaProcessor(QwenVqaImageProcessor(384, 32), tokenizer, chat_template())
        model = random_model(shape_config(SHAPES[name], processor), seed)
        answer_in_text(model, tokenizer)
        save_checkpoint(folder, model, processor)
    return folder


def main() -> None:
    """Make one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=seed_number, default=0, help="of the weights (default: %(default)s)")
    args = parser.parse_args()
    print(shape_checkpoint(args.shape, args.folder, args.seed))


if __name__ == "__main__":
    run("shapes", main)
