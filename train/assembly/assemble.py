"""Training artefacts to a checkpoint folder that `qwen-vqa serve` takes.

    qwen-vqa assemble --vision-encoder google/vit-base-patch32-384 --language-model Qwen/Qwen2.5-3B-Instruct \\
        --connector final_connector.pth --adapter final_lora_model --like original -o my-model
"""

import argparse
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights

from qwen_vqa.plugin.chat.chat_template import IMAGE_TOKEN, QWEN_SYSTEM_PROMPT, chat_template
from qwen_vqa.plugin.checkpoint_files import ADAPTER_FOLDER
from qwen_vqa.plugin.checkpoint_summary import summary_lines
from qwen_vqa.plugin.config import QwenVqaConfig
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.file_mode import give_usual_mode
from qwen_vqa.plugin.lora.adapter import check_adapter
from qwen_vqa.plugin.processor import QwenVqaProcessor
from qwen_vqa.plugin.views.image_processor import QwenVqaImageProcessor
from qwen_vqa.plugin.vision.features import describe
from qwen_vqa.plugin.vision.tower import VisionEncoder, square_sizes
from qwen_vqa.train.assembly.assemble_flags import AssembledParts
from qwen_vqa.train.assembly.connector_file import check_connector, load_connector
from qwen_vqa.train.assembly.encoder_file import LoadedEncoder, load_vision_encoder
from qwen_vqa.train.assembly.original_format import Likeness, decoding_defaults
from qwen_vqa.train.model.adapter_merging import Merged, merge_adapter
from qwen_vqa.train.model.reference_checkpoint import save_checkpoint
from qwen_vqa.train.model.reference_model import QwenVqaForConditionalGeneration
from qwen_vqa.train.model.torch_layers import TorchLayers

DEFAULT_STATISTICS = [0.5, 0.5, 0.5]


def assemble(parts: AssembledParts) -> list[str]:
    """Write the checkpoint; returns the lines that say what was written.

    The folder appears under its name only when it is whole.

    Raises:
        UserError: a part cannot be had, or its shapes do not fit the others.
    """
    connector = load_connector(parts.connector) if parts.connector else None
    vision = load_vision_encoder(parts.vision_encoder, parts.wanted_features)
    language_model, tokenizer = _load_language_model(parts)
    text_width = language_model.config.hidden_size
    inner = text_width
    if connector and parts.connector:
        width = type(vision.encoder).width(vision.config, vision.features)
        inner = check_connector(connector, width, text_width, parts.connector)
    config = QwenVqaConfig(
        vision.config,
        language_model.config,
        {"hidden_size": inner},
        image_token_id=_image_token_id(tokenizer, language_model, parts.language_model),
        vision_features=None if vision.features == vision.encoder.usual_features else vision.features.as_fields(),
    )
    adapter_line = "none"
    if parts.adapter and parts.merge_adapter:
        merged = merge_adapter(language_model, parts.adapter)
        language_model, adapter_line = merged.model, _merged_line(parts.adapter, merged)
        config.text_config = language_model.config
        config.tie_word_embeddings = language_model.config.tie_word_embeddings
    elif parts.adapter:
        summary = check_adapter(parts.adapter, config)
        config.trained_adapter = parts.adapter_name or parts.adapter.resolve().name
        adapter_line = (
            f"{config.trained_adapter} (rank {summary.rank}, alpha {summary.alpha:g}), kept apart; ask for it as "
            f"model {config.trained_adapter!r}: the checkpoint's own name is the model without it"
        )
    language_model.generation_config = decoding_defaults(language_model.generation_config, parts.likeness)
    model = _put_together(parts, config, vision.encoder, connector, language_model)
    _write(parts, model, _processor(parts, vision, tokenizer, config.tokens_per_view))
    return _written(parts, model, vision, adapter_line)


def _put_together(
    parts: AssembledParts,
    config: QwenVqaConfig,
    encoder: VisionEncoder,
    connector: dict[str, torch.Tensor] | None,
    language_model: PreTrainedModel,
) -> QwenVqaForConditionalGeneration:
    dtype = language_model.dtype
    others = [encoder.dtype, *(tensor.dtype for tensor in (connector or {}).values())]
    if connector is None:
        others.append(torch.float32)  # a fresh one, which is trained
    # What the language model's float type cannot hold exactly is held and computed in float32, as scripts do.
    config.vision_in_float32 = parts.dtype == "auto" and any(torch.promote_types(one, dtype) != dtype for one in others)
    # On the meta device, so that a 3B model is in memory once: every part is put in place below.
    with torch.device("meta"), no_init_weights():
        model = QwenVqaForConditionalGeneration(config)
    model.vision_encoder = encoder
    torch.manual_seed(parts.seed)
    model.connector = config.new_connector(TorchLayers())
    model.language_model = language_model
    if connector:
        model.connector.load_state_dict(connector)
    model.to_float_type(dtype)
    return model


def _processor(
    parts: AssembledParts, vision: LoadedEncoder, tokenizer: PreTrainedTokenizerBase, tokens_per_view: int
) -> QwenVqaProcessor:
    how = parts.likeness or Likeness("inline", QWEN_SYSTEM_PROMPT, "pad")
    system_prompt = how.system_prompt if parts.system_prompt is None else parts.system_prompt
    return QwenVqaProcessor(
        QwenVqaImageProcessor(
            *square_sizes(vision.config),
            vision.image_mean or DEFAULT_STATISTICS,
            vision.image_std or DEFAULT_STATISTICS,
            parts.fit or how.fit,
            tokens_per_view,
        ),
        tokenizer,
        chat_template(parts.image_position or how.image_position, system_prompt, tokenizer.all_special_tokens),
    )


def _load_language_model(parts: AssembledParts) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    dtype: str | torch.dtype = "auto" if parts.dtype == "auto" else getattr(torch, parts.dtype)
    try:
        model = AutoModelForCausalLM.from_pretrained(parts.language_model, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(parts.language_model)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no language model at {parts.language_model}: {str(error).strip().splitlines()[0]} Give a hub id "
            "such as Qwen/Qwen2.5-3B-Instruct or a folder with config, weights and tokenizer."
        ) from error
    return model, tokenizer


def _image_token_id(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, name: str) -> int:
    token_id = tokenizer.get_vocab().get(IMAGE_TOKEN)
    if token_id is None:
        raise UserError(
            f"the tokenizer of {name} lacks {IMAGE_TOKEN}. Use a Qwen2 or Qwen2.5 tokenizer, or add "
            "ChatML's and the vision tokens to yours before training."
        )
    rows: int = model.get_input_embeddings().num_embeddings  # type: ignore[assignment] # an nn.Embedding's
    if token_id >= rows:
        raise UserError(
            f"{IMAGE_TOKEN} is token {token_id}, but {name} has only {rows} embeddings: resize them "
            "(model.resize_token_embeddings) before training."
        )
    return token_id


def _write(parts: AssembledParts, model: QwenVqaForConditionalGeneration, processor: QwenVqaProcessor) -> None:
    partial = parts.output.with_name(f".{parts.output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        save_checkpoint(partial, model, processor)
        if parts.adapter and model.config.trained_adapter:
            shutil.copytree(parts.adapter, partial / ADAPTER_FOLDER / model.config.trained_adapter)
            give_usual_mode(partial)
        if parts.output.exists():
            parts.output.rmdir()
        partial.rename(parts.output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _written(
    parts: AssembledParts, model: QwenVqaForConditionalGeneration, vision: LoadedEncoder, adapter_line: str
) -> list[str]:
    """What was written, in lines for the terminal."""
    config = model.config
    size = sum(file.stat().st_size for file in parts.output.rglob("*"))
    rows = [
        (
            "vision encoder",
            f"{parts.vision_encoder}: {config.vision_config.image_size} px, "
            f"{config.most_image_tokens} tokens an image, width {config.feature_width}; "
            f"{describe(config.features)}",
        ),
        (
            "connector",
            f"{parts.connector or f'fresh (seed {parts.seed})'}: {config.feature_width} to "
            f"{config.connector['hidden_size']} to {config.text_config.hidden_size}",
        ),
        (
            "language model",
            f"{parts.language_model}: {config.text_config.model_type}, {config.text_config.num_hidden_layers} layers, "
            f"width {config.text_config.hidden_size}",
        ),
        ("adapter", adapter_line),
    ]
    lines = [f"wrote {parts.output} ({size / 1e9:.2f} GB)", *(f"  {name:<22s}{value}" for name, value in rows)]
    lines += summary_lines(parts.output)
    if vision.image_mean is None:
        lines.append(f"note: {parts.vision_encoder} has no preprocessor file; mean and std 0.5 are assumed")
    if vision.ignored:
        lines.append(f"note: weights of {parts.vision_encoder} that no encoder has: {', '.join(vision.ignored[:4])}")
    lines.append(
        f"serve it: qwen-vqa serve {parts.output}"
        if parts.connector
        else f"train it: qwen-vqa train {parts.output} --data train.jsonl -o runs/mine"
    )
    return lines


def _merged_line(folder: Path, merged: Merged) -> str:
    dtype = str(merged.model.dtype).removeprefix("torch.")
    line = f"{folder} (rank {merged.adapter.rank}, alpha {merged.adapter.alpha:g}) merged into the language model"
    if merged.lost:
        line += f"; rounding to {dtype} moved the weights by {merged.lost:.1%} of what it changes"
    return line


def run(args: argparse.Namespace) -> int:
    """`qwen-vqa assemble`."""
    print("\n".join(assemble(AssembledParts.of(args))))
    return 0
