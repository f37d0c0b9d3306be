"""How an encoder wants to see pixels: what its preprocessor_config.json says, as fields of our image processor."""

from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor
from transformers.image_processing_base import ImageProcessingMixin

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.views.fit import RESAMPLE_NUMBERS
from qwen_vqa.train.assembly.foreign_files import reading
from qwen_vqa.train.assembly.quiet_loading import quiet_loading

_SCALE = 1 / 255
_NAMES = ("preprocessor_config.json", "processor_config.json")
STATISTICS = ("image_mean", "image_std")


def preprocessor_fields(id_or_path: str, image_size: int, given: dict[str, Any]) -> dict[str, Any]:
    """`image_mean`, `image_std`, `fit`, `resample`, `antialias` of an encoder's preprocessor file; {} without one.

    Args:
        image_size: side of the square that the encoder sees, in pixels.
        given: fields that the user names: what the file says of them is not looked at.

    Raises:
        UserError: the file asks for other arithmetic than scaling to 0..1 and normalising, or for another size than
            the encoder's.
    """
    found = _settings(id_or_path)
    if not found:
        return ({"antialias": True} if given.get("fit") == "pad-center" else {}) | given
    with reading("preprocessor file of", id_or_path):
        return _fields(found, image_size, id_or_path, given)


def _fields(found: dict[str, Any], image_size: int, id_or_path: str, given: dict[str, Any]) -> dict[str, Any]:
    factor = found.get("rescale_factor") or _SCALE
    if not found.get("do_rescale", True) or abs(factor * 255 - 1) > 1e-6:
        raise UserError(
            f"the preprocessor file of {id_or_path} has do_rescale {found.get('do_rescale', True)} and rescale_factor "
            f"{found.get('rescale_factor')}; pixels are divided by 255 here, and nothing else."
        )
    fields: dict[str, Any] = {"antialias": True}  # as Transformers' processors do
    if not found.get("do_normalize", True):
        fields |= {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    else:
        fields |= {name: list(found[name]) for name in STATISTICS if found.get(name)}
    if "fit" not in given:
        fields["fit"] = _fit(found, image_size, id_or_path)
    if "resample" not in given and found.get("resample") is not None:
        number = int(found["resample"])
        if number not in RESAMPLE_NUMBERS:
            raise UserError(
                f"the preprocessor file of {id_or_path} has resample {number}; it must be one of "
                f"{', '.join(f'{known} ({name})' for known, name in RESAMPLE_NUMBERS.items())}. Give --resample."
            )
        fields["resample"] = RESAMPLE_NUMBERS[number]
    return fields | given


def _settings(id_or_path: str) -> dict[str, Any]:
    """What the file says, and its class where it does not."""
    try:
        with quiet_loading():
            return AutoImageProcessor.from_pretrained(id_or_path).to_dict()
    except Exception:  # none, or of a class that this Transformers does not have, or broken
        if Path(id_or_path).is_dir() and not any((Path(id_or_path) / name).is_file() for name in _NAMES):
            return {}
        try:
            found = ImageProcessingMixin.get_image_processor_dict(id_or_path)[0]
        except OSError as error:
            if Path(id_or_path).is_dir():
                raise UserError(f"the preprocessor file of {id_or_path} is broken; copy it again.") from error
            return {}
        if not isinstance(found, dict):
            raise UserError(f"the preprocessor file of {id_or_path} is no JSON object; copy it again.") from None
        return found


def _fit(found: dict[str, Any], image_size: int, id_or_path: str) -> str:
    size, cut = found.get("size"), found.get("crop_size") if found.get("do_center_crop") else None
    shortest = size.get("shortest_edge") if isinstance(size, dict) else None
    if not found.get("do_resize", True) or size is None:
        raise UserError(f"the preprocessor file of {id_or_path} does not say how pictures become square: give --fit.")
    made = _square(cut) if cut else None if shortest else _square(size)
    if made != image_size or (cut and _square(shortest or size) != image_size):
        raise UserError(
            f"the preprocessor file of {id_or_path} contradicts its config.json: size {size}"
            + (f" and crop_size {cut}" if cut else "")
            + f", and the encoder sees {image_size} px. Give --fit to say how pictures become {image_size} px a side."
        )
    if found.get("do_pad"):
        return "pad-center"
    return "crop" if shortest and cut else "squash"


def _square(size: Any) -> int | None:
    """The side of a square, by whatever words; None where it is none."""
    if isinstance(size, dict):
        sides = {size.get("height"), size.get("width")} if "height" in size else {size.get("shortest_edge")}
        return sides.pop() if len(sides) == 1 else None
    return size if isinstance(size, int) else None
