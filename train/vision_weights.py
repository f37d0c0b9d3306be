"""A transformers ViT's weights under our stable names."""

import re

import torch
from transformers import AutoConfig, AutoModel, ViTConfig

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.train.vision_encoder import VisionEncoder

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


def load_vision_encoder(id_or_path: str) -> tuple[ViTConfig, VisionEncoder]:
    """A ViT from the hub or a folder, as our encoder in float32.

    Raises:
        UserError: it cannot be had, is no ViT, or has weights that the encoder has no place for.
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
    source, loading = AutoModel.from_pretrained(
        id_or_path, dtype=torch.float32, add_pooling_layer=False, output_loading_info=True
    )
    if loading["missing_keys"]:
        raise UserError(f"the vision encoder {id_or_path} lacks {', '.join(sorted(loading['missing_keys']))}.")
    encoder = VisionEncoder(config)
    encoder.load_state_dict(rename_vit_weights(source.state_dict()))
    return config, encoder


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
