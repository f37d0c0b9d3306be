"""A transformers ViT's weights under our stable names."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModel, ViTConfig
from transformers.image_processing_base import ImageProcessingMixin
from transformers.utils import logging as transformers_log

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.train.model.reference_encoder import VisionEncoder

# transformers has named these two ways so far: up to 4.x (query, dense), and later (q_proj, fc1).
_RENAMES = [
    (r"^embeddings\.cls_token$", "class_embedding"),
    (r"^embeddings\.position_embeddings$", "position_embedding"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embedding."),
    (r"^layernorm\.", "final_norm."),
    (r"^(?:encoder\.layer|layers)\.(\d+)\.layernorm_before\.", r"layers.\1.attention_norm."),
    (r"^(?:encoder\.layer|layers)\.(\d+)\.layernorm_after\.", r"layers.\1.mlp_norm."),
    (r"^(?:encoder\.layer|layers)\.(\d+)\.attention\.([qkv])_proj\.", r"layers.\1.attention.\2_proj."),
    (r"^(?:encoder\.layer|layers)\.(\d+)\.attention\.attention\.([qkv])[a-z]+\.", r"layers.\1.attention.\2_proj."),
    (r"^(?:encoder\.layer|layers)\.(\d+)\.attention\.(?:o_proj|output\.dense)\.", r"layers.\1.attention.out_proj."),
    (r"^(?:encoder\.layer|layers)\.(\d+)\.(?:mlp\.fc1|intermediate\.dense)\.", r"layers.\1.mlp.fc1."),
    (r"^(?:encoder\.layer|layers)\.(\d+)\.(?:mlp\.fc2|output\.dense)\.", r"layers.\1.mlp.fc2."),
]


# What a hub's ViT brings beside the encoder: the head of a classifier, a pooler, the decoder of its training.
_NOT_THE_ENCODER = re.compile(r"^(?:vit\.)?(?:pooler|(?:\w+_)?classifier|decoder|lm_head)\b")


@dataclass(frozen=True)
class LoadedEncoder:
    """A vision encoder and how it wants to see pixels.

    Attributes:
        encoder: in the float type of its file.
        image_mean, image_std: of its own preprocessor file; None where there is none.
        ignored: weights of the file that belong to no encoder, other than a head's.
    """

    config: ViTConfig
    encoder: VisionEncoder
    image_mean: list[float] | None
    image_std: list[float] | None
    ignored: list[str]


def load_vision_encoder(id_or_path: str) -> LoadedEncoder:
    """A ViT from the hub or a folder.

    Raises:
        UserError: it cannot be had, is no ViT, has weights that the encoder has no place for, or its preprocessor
            file asks for other arithmetic than scaling to 0..1 and normalising.
    """
    try:
        config = AutoConfig.from_pretrained(id_or_path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no vision encoder at {id_or_path}: {_first_line(error)}. Give a hub id such as "
            "google/vit-base-patch32-384 or a folder that save_pretrained wrote."
        ) from error
    if config.model_type != "vit":
        raise UserError(
            f"the vision encoder {id_or_path} is a {config.model_type}; this version takes a ViT "
            "(model_type 'vit'), such as google/vit-base-patch32-384."
        )
    with _quiet_loading():  # its table of unexpected weights names the classifier of every ViT
        source, loading = AutoModel.from_pretrained(
            id_or_path, dtype="auto", add_pooling_layer=False, output_loading_info=True
        )
    if loading["missing_keys"]:
        raise UserError(f"the vision encoder {id_or_path} lacks {', '.join(sorted(loading['missing_keys']))}.")
    encoder = VisionEncoder(config)
    encoder.load_state_dict(rename_vit_weights(source.state_dict()))
    mean, std = _pixel_statistics(id_or_path)
    ignored = sorted(name for name in loading["unexpected_keys"] if not _NOT_THE_ENCODER.match(name))
    return LoadedEncoder(config, encoder.to(source.dtype), mean, std, ignored)


def _pixel_statistics(id_or_path: str) -> tuple[list[float] | None, list[float] | None]:
    """Mean and standard deviation of the encoder's preprocessor_config.json, for pixels in 0..1."""
    try:
        found, _ = ImageProcessingMixin.get_image_processor_dict(id_or_path)
    except OSError:
        return None, None
    if not found.get("do_rescale", True) or abs(found.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise UserError(
            f"the preprocessor file of {id_or_path} has do_rescale {found.get('do_rescale', True)} and rescale_factor "
            f"{found.get('rescale_factor')}; pixels are divided by 255 here, and nothing else."
        )
    if not found.get("do_normalize", True):
        return [0.0] * 3, [1.0] * 3
    return found.get("image_mean"), found.get("image_std")


@contextlib.contextmanager
def _quiet_loading() -> Iterator[None]:
    before = transformers_log.get_verbosity()
    transformers_log.set_verbosity_error()
    try:
        yield
    finally:
        transformers_log.set_verbosity(before)


def rename_vit_weights(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers' ViTModel names, of any release, to ours.

    Raises:
        UserError: a name that no release is known to use.
    """
    renamed = {}
    for name, tensor in weights.items():
        for pattern, replacement in _RENAMES:
            new_name, count = re.subn(pattern, replacement, name)
            if count:
                renamed[new_name] = tensor
                break
        else:
            raise UserError(
                f"the ViT weight {name} has a name this version does not know; please report it with "
                "the transformers version."
            )
    return renamed


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
