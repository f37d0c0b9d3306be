"""An image to the pixels that the vision encoder sees: made square, normalised.

Training, evaluation and serving all come through this one class.
"""

from math import inf
from typing import Any, get_args

import numpy as np
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import make_flat_list_of_images

from qwen_vqa.plugin.images.image_detail import DEFAULT_DETAIL, detail_of, wants_tiles, with_detail
from qwen_vqa.plugin.views.fit import Fit, Resample
from qwen_vqa.plugin.views.square import Square
from qwen_vqa.plugin.views.view_layout import ViewLayout
from qwen_vqa.plugin.views.view_rule import ViewRule
from qwen_vqa.plugin.views.view_rules import view_rule

_RGB_CHANNELS = 3
TOKENS = "num_image_tokens"
LAYOUTS = "view_layouts"
_SEEN = "views"  # where an image carries its views beside the whole


class QwenVqaImageProcessor(BaseImageProcessor):
    """Makes an image square, `image_size` pixels a side, and normalises it.

    Args:
        image_size: side of the square canvas, in pixels.
        patch_size: side of the encoder's patches, in pixels; with `image_size` it fixes the token count.
        image_mean: what is subtracted from each RGB channel after scaling to 0..1.
        image_std: what each RGB channel is divided by then.
        fit: how the image becomes square. "squash" is the original project's train.py, "pad" its app.py; "crop" is
            CLIP's, "pad-center" LLaVA's (`fit.Fit` says what they do).
        tokens_per_view: prompt tokens of one view, as config.json's encoder makes them (default: one a patch and one
            for the class token).
        resample: how pixels are computed from their neighbours.
        antialias: whether an image that becomes smaller is smoothed on the way, as Pillow and Transformers do;
            OpenCV, and so the original project, does not. "pad-center" is always antialiased.
        pad_color: RGB of what lies around an image with "pad-center" (default: `image_mean`, as LLaVA has it).
        views: which views an image has, as `views` of config.json (default: the whole image).

    Raises:
        ValueError: a canvas that patches do not cover where `tokens_per_view` is the default, statistics or a colour
            that are not three numbers, another fit or resample.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 - transformers reads a plain class list

    def __init__(
        self,
        image_size: int = 384,
        patch_size: int = 32,
        image_mean: tuple[float, ...] | list[float] = (0.5, 0.5, 0.5),
        image_std: tuple[float, ...] | list[float] = (0.5, 0.5, 0.5),
        fit: Fit = "pad",
        tokens_per_view: int | None = None,
        resample: Resample = "bilinear",
        antialias: bool = False,
        pad_color: list[int] | None = None,
        views: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if tokens_per_view is None and image_size % patch_size:
            raise ValueError(f"image_size {image_size} is not a multiple of patch_size {patch_size}.")
        three = len(image_mean) == len(image_std) == _RGB_CHANNELS
        if not three or not all(0 <= mean <= 1 for mean in image_mean) or not all(0 < std < inf for std in image_std):
            raise ValueError(
                f"image_mean {image_mean} and image_std {image_std} need three values each, for pixels from 0 to 1: "
                "means from 0 to 1, deviations above 0."
            )
        for name, value, known in (("fit", fit, get_args(Fit)), ("resample", resample, get_args(Resample))):
            if value not in known:
                raise ValueError(f"{name} {value!r}: it must be one of {', '.join(known)}.")
        if fit == "pad-center" and not antialias:
            raise ValueError(f"fit {fit!r} is made with antialiasing: set antialias to true.")
        if pad_color is not None and (
            len(pad_color) != _RGB_CHANNELS or not all(type(value) is int and 0 <= value <= 255 for value in pad_color)
        ):
            raise ValueError(f"pad_color {pad_color}: it must be three integers from 0 to 255.")
        if pad_color is not None and fit != "pad-center":
            raise ValueError(f"pad_color is of fit 'pad-center', and fit is {fit!r}.")
        self.fit = fit
        self.resample = resample
        self.antialias = antialias
        self.pad_color = pad_color
        self.image_size = image_size
        self.patch_size = patch_size
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.tokens_per_view = tokens_per_view or self._patches + 1
        self.views = views
        self.view_rule  # noqa: B018 - raises where it does not go with the encoder

    @property
    def _patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    def to_dict(self) -> dict[str, Any]:
        """Without the defaults of fields that older checkpoints do not have: theirs stay as they are, byte by byte."""
        fields = super().to_dict()
        for name, default in (("resample", "bilinear"), ("antialias", False), ("pad_color", None), ("views", None)):
            if fields.get(name) == default:
                fields.pop(name, None)
        if self.tokens_per_view == self._patches + 1 and self.image_size % self.patch_size == 0:
            fields.pop("tokens_per_view")
        return fields

    @property
    def view_rule(self) -> ViewRule:
        """Which views of an image there are."""
        return view_rule(self.views, self.image_size, self.tokens_per_view)

    def image_tokens(self, width: int, height: int, detail: str = DEFAULT_DETAIL) -> int:
        """Prompt tokens that an image of so many pixels takes: what every count of them comes from.

        Raises:
            ValueError: an unknown `detail`.
        """
        wants_tiles(detail)
        return self.view_rule.num_tokens(width, height, detail)

    def layout_of(self, image: Image.Image | np.ndarray) -> ViewLayout:
        """The views that an image has, by its own size and `detail`."""
        if isinstance(image, Image.Image) and _SEEN in image.info:
            return image.info[_SEEN][0]
        height, width = (image.height, image.width) if isinstance(image, Image.Image) else np.shape(image)[:2]
        wants_tiles(detail_of(image))
        return self.view_rule.layout(width, height, detail_of(image))

    def tokens_of(self, image: Image.Image | np.ndarray) -> int:
        """Prompt tokens that an image takes, by its own size and `detail`."""
        return self.layout_of(image).num_tokens(self.tokens_per_view)

    @property
    def most_image_tokens(self) -> int:
        """Prompt tokens of the image that takes most of them."""
        return self.view_rule.most_tokens

    def preprocess(self, images: Any, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        """Any nesting of PIL images or uint8 RGB arrays [H, W, 3] to pixel_values [views, 3, size, size].

        `num_image_tokens` [images] says how many prompt tokens each image takes. Where images have different numbers
        of views, `view_layouts` [images, 6] says which (`ViewLayout.numbers`).

        Raises:
            ValueError: an image without pixels, an array of another shape or type, or an unknown detail.
        """
        flat: list[Any] = make_flat_list_of_images(images)  # type: ignore[assignment] # typed as any nesting
        layouts = [self.layout_of(image) for image in flat]
        views = [
            self._normalise(view)
            for image, layout in zip(flat, layouts, strict=True)
            for view in self._views(image, layout)
        ]
        data: dict[str, Any] = {
            "pixel_values": views,
            TOKENS: [layout.num_tokens(self.tokens_per_view) for layout in layouts],
        }
        if self.view_rule.fixed_views is None:
            data[LAYOUTS] = [layout.numbers() for layout in layouts]
        return BatchFeature(data, tensor_type=return_tensors)

    def shrunk(self, image: Image.Image) -> Image.Image:
        """An image of `image_size` pixels a side of which `preprocess` makes the same: it carries its other views.

        Raises:
            ValueError: as `preprocess`.
        """
        layout = self.layout_of(image)
        whole, *others = self._views(image, layout)
        small = with_detail(Image.fromarray(whole), detail_of(image))
        if others:
            small.info[_SEEN] = (layout, others)
        return small

    def _views(self, image: Image.Image | np.ndarray, layout: ViewLayout) -> list[np.ndarray]:
        """An image's views, uint8 RGB [size, size, 3] each."""
        rgb = as_rgb_array(image)
        if isinstance(image, Image.Image) and _SEEN in image.info:
            return [rgb, *image.info[_SEEN][1]]
        return self.view_rule.views(rgb, self.square, layout)

    def view_key(self, detail: str) -> str:
        """The same for each `detail` with which an image of equal bytes has equal views.

        Raises:
            ValueError: no such detail.
        """
        tiles = wants_tiles(detail) and self.view_rule.fixed_views is None
        return self.view_rule.name if tiles else "whole"

    @property
    def square(self) -> Square:
        """How an image becomes square."""
        color = self.pad_color or [int(mean * 255) for mean in self.image_mean]
        return Square(self.image_size, self.fit, self.resample, self.antialias, tuple(color))

    def canvas(self, image: Image.Image | np.ndarray) -> np.ndarray:
        """One image made square, uint8 RGB [size, size, 3]: what ViTImageProcessor would be given."""
        return self.square.of(as_rgb_array(image))

    def _normalise(self, canvas: np.ndarray) -> np.ndarray:
        values = np.arange(256, dtype=np.float32)[:, None] / np.float32(255)
        table = (values - np.asarray(self.image_mean, np.float32)) / np.asarray(self.image_std, np.float32)  # [256, 3]
        return np.stack([table[:, channel][canvas[:, :, channel]] for channel in range(_RGB_CHANNELS)])


def as_rgb_array(image: Image.Image | np.ndarray) -> np.ndarray:
    """A PIL image of any mode, or an RGB array, as a uint8 array [H, W, 3].

    Raises:
        ValueError: the image has no pixels, or the array is not uint8 RGB.
    """
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise ValueError(f"the image is {image.width}x{image.height}: it has no pixels.")
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[2] != _RGB_CHANNELS or array.dtype != np.uint8 or not array.size:
        raise ValueError(
            f"an image array must be uint8 RGB of shape [height, width, 3]; got {array.dtype} {array.shape}."
        )
    return array
