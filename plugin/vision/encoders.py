"""The vision encoders that there are. Another one is a file beside this one, and a name in this list."""

from transformers.configuration_utils import PretrainedConfig

from qwen_vqa.plugin.vision.clip import ClipEncoder
from qwen_vqa.plugin.vision.dinov2 import Dinov2Encoder, Dinov2WithRegistersEncoder
from qwen_vqa.plugin.vision.siglip import SiglipEncoder
from qwen_vqa.plugin.vision.tower import VisionEncoder
from qwen_vqa.plugin.vision.vit import VitEncoder

_ALL: tuple[type[VisionEncoder], ...] = (
    VitEncoder,
    ClipEncoder,
    SiglipEncoder,
    Dinov2Encoder,
    Dinov2WithRegistersEncoder,
)
ENCODERS = {encoder.model_type: encoder for encoder in _ALL}


def encoder_family(config: PretrainedConfig) -> type[VisionEncoder]:
    """The encoder's class, by its Transformers config.

    Raises:
        ValueError: there is none of that kind.
    """
    if config.model_type not in ENCODERS:
        raise ValueError(
            f"vision_config.model_type is {config.model_type!r}; this version serves {', '.join(ENCODERS)}. Assemble "
            f"the checkpoint with one of them, such as {examples()}."
        )
    return ENCODERS[config.model_type]


def examples() -> str:
    """One of each family, by its id on the hub."""
    return " or ".join(encoder.example for encoder in ENCODERS.values())
