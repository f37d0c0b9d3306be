"""`detail` of an image, as OpenAI has it: how closely the model shall look. It travels with the picture."""

from PIL import Image

DETAILS = ("low", "high", "auto")
DEFAULT_DETAIL = "auto"
SAME_DETAILS = {"original": "high"}  # what OpenAI has beside them, and what it comes to here
_KEY = "detail"


def with_detail(image: Image.Image, detail: str) -> Image.Image:
    """The picture with its `detail` noted, and without what else its file said about itself."""
    image.info = {_KEY: detail}
    return image


def detail_of(image: object) -> str:
    """The `detail` noted with a picture; "auto" where there is none, as for arrays."""
    return image.info.get(_KEY, DEFAULT_DETAIL) if isinstance(image, Image.Image) else DEFAULT_DETAIL


def wants_tiles(detail: str) -> bool:
    """Whether a model that has tiles shall look at a picture of this `detail` through them: not with "low".

    Raises:
        ValueError: no such detail.
    """
    if detail not in DETAILS:
        raise ValueError(f"detail {detail!r}: it must be one of {', '.join(DETAILS)}.")
    return detail != "low"
