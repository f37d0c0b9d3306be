"""Training artefacts to a checkpoint folder that `qwen-vqa serve` takes.

    qwen-vqa assemble --vision-encoder google/vit-base-patch32-384 --language-model Qwen/Qwen2.5-3B-Instruct \\
        --connector final_connector.pth --adapter final_lora_model --like original -o my-model
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights

from qwen_vqa.plugin.chat.chat_template import QWEN_SYSTEM_PROMPT, chat_template
from qwen_vqa.plugin.checkpoint_files import ADAPTER_FOLDER
from qwen_vqa.plugin.checkpoint_summary import summary_lines
from qwen_vqa.plugin.command.file_mode import give_usual_mode
from qwen_vqa.plugin.command.installed_command import typed_command
from qwen_vqa.plugin.config import QwenVqaConfig
from qwen_vqa.plugin.connector.mlp import ConnectorShape
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.lora.adapter import check_adapter
from qwen_vqa.plugin.processor import QwenVqaProcessor
from qwen_vqa.plugin.views.image_processor import QwenVqaImageProcessor
from qwen_vqa.plugin.views.view_rule import RULE
from qwen_vqa.plugin.views.view_rules import VIEW_RULES
from qwen_vqa.plugin.views.whole import WholeImage
from qwen_vqa.plugin.vision.features import describe
from qwen_vqa.plugin.vision.tower import VisionEncoder, square_sizes
from qwen_vqa.train.assembly.assemble_flags import AssembledParts
from qwen_vqa.train.assembly.connector_file import connector_shape, load_connector
from qwen_vqa.train.assembly.encoder_file import load_vision_encoder
from qwen_vqa.train.assembly.language_model_file import image_token_id, load_language_model, load_tokenizer
from qwen_vqa.train.assembly.llava_checkpoint import load_llava
from qwen_vqa.train.assembly.loaded_parts import LoadedParts
from qwen_vqa.train.assembly.original_format import LLAVA, Likeness, decoding_defaults
from qwen_vqa.train.assembly.preprocessor_file import STATISTICS, preprocessor_fields
from qwen_vqa.train.model.adapter_merging import Merged, merge_adapter
from qwen_vqa.train.model.reference_checkpoint import save_checkpoint
from qwen_vqa.train.model.reference_model import QwenVqaForConditionalGeneration
from qwen_vqa.train.model.torch_layers import TorchLayers


def assemble(parts: AssembledParts) -> list[str]:
    """Write the checkpoint; returns the lines that say what was written.

    The folder appears under its name only when it is whole.

    Raises:
        UserError: a part cannot be had, or its shapes do not fit the others.
    """
    loaded = _loaded(parts)
    vision, language_model = loaded.vision, loaded.language_model
    pixels = _pixel_fields(parts, loaded)
    config = _config(parts, loaded)
    adapter, adapter_line = loaded.adapter, "none"
    if adapter and parts.merge_adapter:
        merged = merge_adapter(language_model, adapter)
        language_model, adapter_line = merged.model, _merged_line(adapter, merged)
        config.text_config = language_model.config
        config.tie_word_embeddings = language_model.config.tie_word_embeddings
    elif adapter:
        summary = check_adapter(adapter, config)
        config.trained_adapter = parts.adapter_name or adapter.resolve().name
        adapter_line = (
            f"{config.trained_adapter} (rank {summary.rank}, alpha {summary.alpha:g}), kept apart; ask for it as "
            f"model {config.trained_adapter!r}: the checkpoint's own name is the model without it"
        )
    language_model.generation_config = decoding_defaults(language_model.generation_config, parts.likeness)
    model = _put_together(parts, config, vision.encoder, loaded.connector, language_model)
    _write(parts, model, _processor(parts, pixels, loaded.tokenizer, config), adapter)
    lines = _written(parts, model, loaded, adapter_line)
    if not {*STATISTICS} <= set(pixels):
        lines.insert(-1, f"note: {loaded.vision_name} has no preprocessor file; mean and std 0.5 are assumed")
    return lines


def _loaded(parts: AssembledParts) -> LoadedParts:
    dtype: str | torch.dtype = "auto" if parts.dtype == "auto" else getattr(torch, parts.dtype)
    if parts.from_llava:
        whole = load_llava(parts.from_llava, dtype, parts.vision_encoder, parts.language_model)
        return replace(whole, adapter=parts.adapter or whole.adapter)
    assert parts.vision_encoder and parts.language_model  # or the flags would not have been taken
    connector = load_connector(parts.connector) if parts.connector else None  # said before gigabytes are read
    return LoadedParts(
        vision=load_vision_encoder(parts.vision_encoder, parts.wanted_features),
        vision_name=parts.vision_encoder,
        connector=connector,
        connector_name=str(parts.connector or f"fresh (seed {parts.seed})"),
        language_model=load_language_model(parts.language_model, dtype),
        language_model_name=parts.language_model,
        tokenizer=load_tokenizer(parts.language_model),
        adapter=parts.adapter,
    )


def _config(parts: AssembledParts, loaded: LoadedParts) -> QwenVqaConfig:
    """Of the parts together, with what does not fit said by name."""
    vision, text_config = loaded.vision, loaded.language_model.config
    views, factor = loaded.views or parts.wanted_views, parts.pixel_shuffle
    if loaded.connector:
        rule = VIEW_RULES[views[RULE] if views else WholeImage.name]
        width = type(vision.encoder).width(vision.config, vision.features) * rule.times_wider(views or {})
        shape = connector_shape(
            loaded.connector, width, text_config.hidden_size, factor, loaded.connector_name, rule.has_newline
        )
    else:
        shape = ConnectorShape(text_config.hidden_size, num_layers=parts.connector_layers or 2, pixel_shuffle=factor)
    try:
        return QwenVqaConfig(
            vision.config,
            text_config,
            shape.as_fields(),
            image_token_id=image_token_id(loaded.tokenizer, loaded.language_model, loaded.language_model_name),
            views=views,
            vision_features=None if vision.features == vision.encoder.usual_features else vision.features.as_fields(),
        )
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"the parts do not fit each other: {error}") from error


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


def _pixel_fields(parts: AssembledParts, loaded: LoadedParts) -> dict[str, Any]:
    """How pictures become pixels: by flag, as `like` has it, as the encoder's own file says; else as app.py does."""
    given = loaded.pixels | parts.wanted_pixels
    if parts.likeness:
        given = {"fit": parts.likeness.fit, "resample": "bilinear", "antialias": False} | given
    fields = preprocessor_fields(loaded.vision_name, square_sizes(loaded.vision.config)[0], given)
    if parts.from_llava and not {*STATISTICS} <= set(fields):
        raise UserError(
            f"{loaded.vision_name} has no preprocessor_config.json, by which LLaVA makes its pixels. Copy it there "
            "from the encoder's release."
        )
    return fields


def _processor(
    parts: AssembledParts, pixels: dict[str, Any], tokenizer: PreTrainedTokenizerBase, config: QwenVqaConfig
) -> QwenVqaProcessor:
    how = parts.likeness or (LLAVA if parts.from_llava else Likeness("inline", QWEN_SYSTEM_PROMPT, "pad"))
    system_prompt = how.system_prompt if parts.system_prompt is None else parts.system_prompt
    try:
        image_processor = QwenVqaImageProcessor(
            *square_sizes(config.vision_config),
            tokens_per_view=config.tokens_per_view,
            views=config.views,
            **pixels,
        )
    except ValueError as error:
        raise UserError(f"pictures cannot be made so: {error}") from error
    return QwenVqaProcessor(
        image_processor,
        tokenizer,
        chat_template(parts.image_position or how.image_position, system_prompt, tokenizer.all_special_tokens),
    )


def _write(
    parts: AssembledParts, model: QwenVqaForConditionalGeneration, processor: QwenVqaProcessor, adapter: Path | None
) -> None:
    partial = parts.output.with_name(f".{parts.output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        save_checkpoint(partial, model, processor)
        if adapter and model.config.trained_adapter:
            shutil.copytree(adapter, partial / ADAPTER_FOLDER / model.config.trained_adapter)
            give_usual_mode(partial)
        if parts.output.exists():
            parts.output.rmdir()
        partial.rename(parts.output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _written(
    parts: AssembledParts, model: QwenVqaForConditionalGeneration, loaded: LoadedParts, adapter_line: str
) -> list[str]:
    """What was written, in lines for the terminal."""
    config = model.config
    size = sum(file.stat().st_size for file in parts.output.rglob("*"))
    rows = [
        (
            "vision encoder",
            f"{loaded.vision_name}: {config.vision_config.image_size} px, "
            f"{config.most_image_tokens} tokens an image, width {config.feature_width}; "
            f"{describe(config.features)}",
        ),
        (
            "connector",
            f"{loaded.connector_name}: "
            f"{config.connector_shape.describe(config.feature_width, config.text_config.hidden_size)}",
        ),
        (
            "language model",
            f"{loaded.language_model_name}: {config.text_config.model_type}, "
            f"{config.text_config.num_hidden_layers} layers, width {config.text_config.hidden_size}",
        ),
        ("adapter", adapter_line),
    ]
    lines = [f"wrote {parts.output} ({size / 1e6:,.0f} MB)", *(f"  {name:<22s}{value}" for name, value in rows)]
    lines += summary_lines(parts.output)
    if ignored := loaded.vision.ignored:
        lines.append(f"note: weights of {loaded.vision_name} that no encoder has: {', '.join(ignored[:4])}")
    lines.append(
        f"serve it: {typed_command()} serve {parts.output}"
        if loaded.connector
        else f"train it: {typed_command()} train {parts.output} --data train.jsonl -o runs/mine"
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
