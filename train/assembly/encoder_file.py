"""A vision encoder from the hub or a folder: its weights under our stable names."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import AutoConfig
from transformers.configuration_utils import PretrainedConfig

from qwen_vqa.plugin.errors import UserError, first_line_of
from qwen_vqa.plugin.vision.encoders import ENCODERS, examples
from qwen_vqa.plugin.vision.features import FeatureChoice
from qwen_vqa.plugin.vision.tower import VisionEncoder
from qwen_vqa.train.assembly.foreign_files import reading
from qwen_vqa.train.assembly.quiet_loading import quiet_loading
from qwen_vqa.train.model.torch_layers import TorchLayers

_COUNTED = ".position_ids"  # 0, 1, 2, ...: older releases of Transformers saved it


@dataclass(frozen=True)
class LoadedEncoder:
    """A vision encoder.

    Attributes:
        features: what of it the connector is given.
        encoder: in the float type of its file.
        ignored: weights of the file that belong to no encoder, other than a head's.
    """

    config: PretrainedConfig
    features: FeatureChoice
    encoder: VisionEncoder
    ignored: list[str]


def load_vision_encoder(id_or_path: str, wanted: Mapping[str, Any] | None = None) -> LoadedEncoder:
    """An encoder of one of the families that there are, alone or as a part of a model with text.

    Args:
        wanted: fields of `FeatureChoice` that are not to be as usual for the family. Layers that no chosen feature
            needs are left out.

    Raises:
        UserError: it cannot be had, is of no such family, or has weights that the encoder has no place for.
    """
    config = encoder_config(id_or_path)
    family = ENCODERS[config.model_type]
    _features(family, config, wanted, id_or_path)  # said before gigabytes are read
    with (
        reading("vision encoder", id_or_path),
        quiet_loading(),
    ):  # its table of unexpected weights names what every such checkpoint brings beside
        source, loading = getattr(transformers, family.transformers_class).from_pretrained(
            id_or_path, dtype="auto", output_loading_info=True, **family.transformers_arguments
        )
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise UserError(f"the vision encoder {id_or_path} lacks {', '.join(missing[:6])}: is it one of its family?")
    ignored = sorted(name for name in loading["unexpected_keys"] if not family.not_the_encoder.match(name))
    return encoder_of(config, source.state_dict(), wanted, id_or_path, ignored)


def encoder_config(id_or_path: str) -> PretrainedConfig:
    """The config of an encoder, which may be a part of a model with text.

    Raises:
        UserError: it cannot be had, or is of no family that there is.
    """
    try:
        config = AutoConfig.from_pretrained(id_or_path)
    except Exception as error:  # also classes of its own, for a config that cannot be
        raise UserError(
            f"no vision encoder at {id_or_path}: {first_line_of(error)}. Give a hub id such as "
            f"{examples()}, or a folder that save_pretrained wrote."
        ) from error
    config = getattr(config, "vision_config", config)
    if config.model_type not in ENCODERS:
        raise UserError(
            f"the vision encoder {id_or_path} is a {config.model_type}; this version takes {', '.join(ENCODERS)}, such "
            f"as {examples()}."
        )
    return config


def encoder_of(
    config: PretrainedConfig,
    weights: dict[str, torch.Tensor],
    wanted: Mapping[str, Any] | None,
    name: str,
    ignored: Sequence[str] = (),
) -> LoadedEncoder:
    """Our encoder from the weights of Transformers', by whatever names a release has for them.

    Args:
        name: where they came from.
        ignored: what else was there.

    Raises:
        UserError: as `load_vision_encoder`.
    """
    if config.model_type not in ENCODERS:
        raise UserError(f"the encoder of {name} is a {config.model_type}; this version takes {', '.join(ENCODERS)}.")
    family = ENCODERS[config.model_type]
    features = _features(family, config, wanted, name)
    with reading("vision encoder", name):
        encoder = family(config, TorchLayers(), features)
        found = _used(renamed_weights(family, weights), features, len(encoder.layers))
        if missing := sorted(set(encoder.state_dict()) - set(found)):
            raise UserError(f"the vision encoder of {name} lacks {', '.join(missing[:6])}.")
        encoder.load_state_dict(found)
    return LoadedEncoder(config, features, encoder.to(next(iter(found.values())).dtype), list(ignored))


def _features(
    family: type[VisionEncoder], config: PretrainedConfig, wanted: Mapping[str, Any] | None, name: str
) -> FeatureChoice:
    try:
        features = FeatureChoice.of(family.usual_features.as_fields() | dict(wanted or {}))
        family.check(config, features)
    except ValueError as error:
        raise UserError(f"the vision encoder {name} cannot be used: {error}") from error
    return features


def _used(weights: dict[str, torch.Tensor], features: FeatureChoice, num_layers: int) -> dict[str, torch.Tensor]:
    """Without layers behind the last one that is taken, and without a norm that is not."""
    return {
        name: tensor
        for name, tensor in weights.items()
        if not (name.startswith("layers.") and int(name.split(".")[1]) >= num_layers)
        and (features.norm or not name.startswith("final_norm."))
    }


def renamed_weights(family: type[VisionEncoder], weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Transformers' names, of any release, to ours; what is not the encoder is left out.

    Raises:
        UserError: a name that no release is known to use.
    """
    renamed = {}
    for name, tensor in weights.items():
        new = next((re.sub(old, ours, name) for old, ours in family.weight_names if re.search(old, name)), None)
        if new is not None:
            renamed[new] = tensor
        elif not family.not_the_encoder.match(name) and not name.endswith(_COUNTED):
            raise UserError(
                f"the {family.model_type} weight {name} has a name this version does not know; please report it with "
                "the transformers version."
            )
    return renamed
