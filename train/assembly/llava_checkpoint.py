"""A whole LLaVA checkpoint taken apart: of Transformers (LLaVA, LLaVA-NeXT) or the LLaVA repository.

Sources: Transformers' models/llava and models/llava_next; llava/model/llava_arch.py and multimodal_encoder/ of
https://github.com/haotian-liu/LLaVA and https://github.com/LLaVA-VL/LLaVA-NeXT, whose SigLIP tower has no last layer.
"""

import ast
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    PretrainedConfig,
    PreTrainedModel,
)

from qwen_vqa.plugin.connector.mlp import ACTIVATIONS
from qwen_vqa.plugin.errors import UserError, first_line_of
from qwen_vqa.plugin.hub_checkpoint import hub_files
from qwen_vqa.train.assembly.connector_file import NEWLINE, load_connector
from qwen_vqa.train.assembly.encoder_file import LoadedEncoder, encoder_config, encoder_of, load_vision_encoder
from qwen_vqa.train.assembly.foreign_files import reading
from qwen_vqa.train.assembly.language_model_file import add_image_tokens, load_language_model, load_tokenizer
from qwen_vqa.train.assembly.loaded_parts import LoadedParts
from qwen_vqa.train.assembly.quiet_loading import quiet_loading

_TOWER = re.compile(r"(?:^|\.)vision_tower\.vision_tower\.(?P<rest>.+)$")
_CLASSES = {"llava": LlavaForConditionalGeneration, "llava_next": LlavaNextForConditionalGeneration}
_FILES = ("*.json", "*.safetensors", "*.bin", "*.jinja", "*.txt", "*.model")
_ADAPTER_FILE = "adapter_config.json"
# Of the LLaVA repository's config.json, what is not its language model's.
_NOT_TEXT = re.compile(r"^(?:mm_|(?:un)?freeze_mm|tune_mm|use_mm|image_|tokenizer_|architectures$|model_type$)")


def load_llava(
    id_or_path: str,
    dtype: str | torch.dtype = "auto",
    vision_encoder: str | None = None,
    language_model: str | None = None,
) -> LoadedParts:
    """The parts of a whole checkpoint.

    Args:
        dtype: of the language model; "auto" for its own.
        vision_encoder, language_model: in place of those that the LLaVA repository's config.json names.

    Raises:
        UserError: it cannot be had, is in neither layout, or has what there is not here.
    """
    folder = _folder(id_or_path)
    try:
        config, _ = PretrainedConfig.get_config_dict(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"no LLaVA checkpoint at {id_or_path}: {first_line_of(error)}.") from error
    if config.get("model_type") in _CLASSES and "vision_config" in config:
        if vision_encoder or language_model:
            raise UserError(
                f"{id_or_path} has its vision encoder and language model in it: leave out --vision-encoder and "
                "--language-model, which replace what the LLaVA repository's config.json names."
            )
        return _of_transformers(folder, id_or_path, _CLASSES[config["model_type"]], dtype)
    if "mm_vision_tower" in config:
        return _of_repository(folder, id_or_path, config, dtype, vision_encoder, language_model)
    raise UserError(
        f"{id_or_path} is a {config.get('model_type')}: neither Transformers' llava or llava_next nor of the LLaVA "
        "repository, whose config.json has mm_vision_tower. Give its parts with --vision-encoder, --connector and "
        "--language-model."
    )


def _of_transformers(folder: Path, name: str, class_: Any, dtype: str | torch.dtype) -> LoadedParts:
    with reading("LLaVA checkpoint", name), quiet_loading():
        whole, loading = class_.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    if missing := sorted(loading["missing_keys"]):
        raise UserError(f"{name} lacks the weights {', '.join(missing[:6])}.")
    config, tower = whole.config, whole.model.vision_tower
    if config.projector_hidden_act not in ACTIVATIONS:
        raise UserError(
            f"{name} has projector_hidden_act {config.projector_hidden_act}; it must be {' or '.join(ACTIVATIONS)}."
        )
    wanted = _wanted(config.vision_feature_layer, config.vision_feature_select_strategy == "default")
    connector, pixels, views = dict(whole.model.multi_modal_projector.state_dict()), {}, None
    if class_ is LlavaNextForConditionalGeneration:
        connector[NEWLINE] = whole.model.image_newline.detach()
        pixels, views = {"fit": "squash"}, {"rule": "llava-next", "grid_pinpoints": config.image_grid_pinpoints}
    language_model, tokenizer = _causal_lm(whole), load_tokenizer(str(folder))
    add_image_tokens(tokenizer, language_model, name)
    return LoadedParts(
        vision=encoder_of(tower.config, tower.state_dict(), wanted, name),
        vision_name=str(folder),
        connector=connector,
        connector_name=name,
        language_model=language_model,
        language_model_name=name,
        tokenizer=tokenizer,
        pixels=pixels,
        views=views,
    )


def _causal_lm(whole: Any) -> PreTrainedModel:
    """The language model, which Transformers' LLaVA holds as layers and an output layer."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(whole.config.text_config, dtype=whole.dtype)
    setattr(model, model.base_model_prefix, whole.model.language_model)
    model.set_output_embeddings(whole.lm_head)
    model.generation_config = whole.generation_config
    return model.eval()


def _of_repository(
    folder: Path,
    name: str,
    config: dict[str, Any],
    dtype: str | torch.dtype,
    vision_encoder: str | None,
    language_model: str | None,
) -> LoadedParts:
    _check(config, name)
    weights = _weight_files(folder)
    adapter = folder if (folder / _ADAPTER_FILE).is_file() else None
    of_its_own = bool(weights) and adapter is None and language_model is None
    source = str(folder) if of_its_own else language_model or config.get("_name_or_path")
    if not source:
        raise UserError(f"{name} has no language model, and its config.json names none: give --language-model.")
    vision_name = vision_encoder or config["mm_vision_tower"]
    vision = _tower(vision_name, config, weights, name)
    model = load_language_model(source, dtype, _text_config(config, name) if of_its_own else None)
    tokenizer = load_tokenizer(source)
    add_image_tokens(tokenizer, model, name)
    return LoadedParts(
        vision=vision,
        vision_name=vision_name,
        connector=load_connector(folder),
        connector_name=name,
        language_model=model,
        language_model_name=source,
        tokenizer=tokenizer,
        pixels=_pixels(config),
        views=_views(config, name),
        adapter=adapter,
    )


def _check(config: dict[str, Any], name: str) -> None:
    """Raises UserError for what LLaVA's repository has, and there is not here."""
    known: dict[str, tuple[Any, ...]] = {
        "mm_vision_select_feature": ("patch", "cls_patch"),
        "image_aspect_ratio": ("pad", "square", "anyres", None),
        "mm_use_im_start_end": (False,),
        "mm_use_im_patch_token": (False,),
    }
    if config.get("image_aspect_ratio") == "anyres":
        known["mm_patch_merge_type"] = ("spatial_unpad",)
        config = {"mm_patch_merge_type": "flat"} | config  # as LLaVA's repository has it by default
    for key, values in known.items():
        if (value := config.get(key, values[0])) not in values:
            raise UserError(
                f"{name} has {key} {value!r} in config.json; this version takes {', '.join(map(repr, values))}."
            )


def _tower(vision_name: str, config: dict[str, Any], weights: list[Path], name: str) -> LoadedEncoder:
    """The encoder of its own file, or the one trained further that lies among the checkpoint's weights."""
    vision_config = encoder_config(vision_name)
    layer = config.get("mm_vision_select_layer", -2)
    patches_alone = config.get("mm_vision_select_feature", "patch") == "patch"
    # Whatever config.json says, LLaVA-NeXT's SigLIP tower gives what comes before the last layer, of all its patches.
    siglip = vision_config.model_type.startswith("siglip")
    wanted = _wanted(-2, False) if siglip else _wanted(layer, patches_alone)
    with reading("weights of", name):
        trained = {match["rest"]: tensor for key, tensor in _read(weights, _TOWER) if (match := _TOWER.search(key))}
    if trained:
        return encoder_of(vision_config, trained, wanted, name)
    return load_vision_encoder(vision_name, wanted)


def _wanted(layers: int | list[int], patches_alone: bool) -> dict[str, Any]:
    """Fields of `FeatureChoice`; LLaVA never applies the encoder's last norm."""
    layers = [layers] if isinstance(layers, int) else list(layers)
    return {"layers": layers, "norm": False, "class_token": not patches_alone}


def _text_config(config: dict[str, Any], name: str) -> PretrainedConfig:
    """Of the language model alone, from a config.json whose model_type is llava_llama, llava_qwen, ..."""
    base = str(config.get("model_type") or "").removeprefix("llava").strip("_") or "llama"
    model_type = {"qwen": "qwen2"}.get(base, base)
    if model_type not in CONFIG_MAPPING:
        raise UserError(f"{name} has model_type {config.get('model_type')!r}, and Transformers has no {model_type!r}.")
    fields = {key: value for key, value in config.items() if not _NOT_TEXT.match(key)}
    return CONFIG_MAPPING[model_type].from_dict(fields)


def _pixels(config: dict[str, Any]) -> dict[str, Any]:
    """`pad` is LLaVA's expand2square before the encoder's own processor; else that is all there is."""
    fits = {"pad": {"fit": "pad-center"}, "anyres": {"fit": "squash"}}
    return fits.get(config.get("image_aspect_ratio", ""), {})


def _views(config: dict[str, Any], name: str) -> dict[str, Any] | None:
    """LLaVA-NeXT's tiles; its repository writes pinpoints as [width, height]."""
    if config.get("image_aspect_ratio") != "anyres":
        return None
    pinpoints = config.get("image_grid_pinpoints")
    try:
        pinpoints = ast.literal_eval(pinpoints) if isinstance(pinpoints, str) else pinpoints
        return {"rule": "llava-next", "grid_pinpoints": [[height, width] for width, height in pinpoints or []]}
    except (SyntaxError, TypeError, ValueError) as error:
        raise UserError(
            f"{name} has image_grid_pinpoints {pinpoints!r}; expected a list of [width, height] in pixels."
        ) from error


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def _read(files: list[Path], wanted: re.Pattern[str]) -> list[tuple[str, torch.Tensor]]:
    """The tensors whose names fit, of all files."""
    found = []
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as tensors:
                names = [name for name in tensors.keys() if wanted.search(name)]  # noqa: SIM118 - it is no mapping
                found += [(name, tensors.get_tensor(name)) for name in names]
        else:
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            found += [(key, tensor) for key, tensor in state.items() if wanted.search(key)]
    return found


def _folder(id_or_path: str) -> Path:
    folder = Path(id_or_path).expanduser()
    return folder if folder.is_dir() else hub_files(id_or_path, None, list(_FILES), "LLaVA checkpoint")
