"""What `qwen-vqa assemble` is told: its flags, and the parts that they name."""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from qwen_vqa.plugin.chat.chat_template import QWEN_SYSTEM_PROMPT, ImagePosition
from qwen_vqa.plugin.command.command_parser import seed_number
from qwen_vqa.plugin.command.output_folder import check_new
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.hub_checkpoint import check_source
from qwen_vqa.plugin.views.fit import Fit, Resample
from qwen_vqa.plugin.views.s2 import POOLINGS
from qwen_vqa.plugin.views.view_rules import VIEW_RULES
from qwen_vqa.plugin.views.whole import WholeImage
from qwen_vqa.train.assembly.original_format import LIKENESSES, Likeness

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class AssembledParts:
    """What a checkpoint is assembled from, and how.

    Without `connector` there is a fresh one, drawn with `seed`, to be trained. What is None is as `like` has it, or
    else as it is by default. `dtype` "auto": each part keeps its own; `adapter_name` is what a request will call an
    adapter that is kept apart.
    """

    output: Path
    vision_encoder: str | None = None
    language_model: str | None = None
    from_llava: str | None = None
    connector: Path | None = None
    adapter: Path | None = None
    adapter_name: str | None = None
    merge_adapter: bool = True
    like: str | None = None
    image_position: ImagePosition | None = None
    system_prompt: str | None = None
    fit: Fit | None = None
    resample: Resample | None = None
    antialias: bool | None = None
    pad_color: list[int] | None = None
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    dtype: str = "auto"
    seed: int = 0
    feature_layer: list[int] | None = None
    feature_norm: bool | None = None
    class_token: bool | None = None
    connector_layers: int | None = None
    pixel_shuffle: int = 1
    views: str | None = None
    max_tiles: int | None = None
    scales: list[int] | None = None
    pooling: str | None = None

    def __post_init__(self) -> None:
        self._check_sources()
        if self.connector_layers is not None and self.connector is not None:
            raise UserError("--connector-layers is of a fresh connector; a --connector file has its own number.")
        of_rules = (
            ("--max-tiles", self.max_tiles, "tiles"),
            ("--scales", self.scales, "s2"),
            ("--pooling", self.pooling, "s2"),
        )
        for flag, value, rule in of_rules:
            if value is not None and self.views != rule:
                raise UserError(f"{flag} is of --views {rule}.")
        try:
            VIEW_RULES[self.views or WholeImage.name].check_fields(self.wanted_views or {})
        except ValueError as error:
            raise UserError(str(error)) from error
        if self.pixel_shuffle < 1:
            raise UserError(f"--pixel-shuffle {self.pixel_shuffle}: it must be a positive integer.")
        if self.adapter_name is not None and ((self.adapter or self.from_llava) is None or self.merge_adapter):
            raise UserError("--adapter-name names an adapter that is kept apart: add --adapter and --no-merge-adapter.")
        if self.adapter_name is not None and not _NAME.fullmatch(self.adapter_name):
            raise UserError(
                f"--adapter-name {self.adapter_name!r}: letters, digits, '.', '_' and '-' are taken, at most 100, "
                "and no dot first."
            )
        check_new(self.output)
        if self.dtype not in ("auto", *DTYPES):
            raise UserError(f"--dtype {self.dtype}: it must be auto, {', '.join(DTYPES)}.")
        if self.like is not None and self.like not in LIKENESSES:
            raise UserError(f"--like {self.like}: it must be one of {', '.join(LIKENESSES)}.")

    def _check_sources(self) -> None:
        """Raises UserError unless the parts are named, or one whole checkpoint."""
        if self.from_llava is None:
            named = {"--vision-encoder": self.vision_encoder, "--language-model": self.language_model}
            if missing := [flag for flag, value in named.items() if not value]:
                raise UserError(f"{' and '.join(missing)} missing; or give a whole checkpoint with --from-llava.")
            return
        if not self.from_llava:
            raise UserError("--from-llava needs a hub id or a folder.")
        fixed = {
            "--connector": self.connector,
            "--like": self.like,
            "--connector-layers": self.connector_layers,
            "--views": self.views,
            "--feature-layer, --feature-norm and --class-token": self.wanted_features or None,
        }
        if given := [flag for flag, value in fixed.items() if value is not None]:
            raise UserError(f"--from-llava takes the checkpoint as it is: leave out {', '.join(given)}.")

    @property
    def likeness(self) -> Likeness | None:
        """The script whose prompt, pixels and decoding are taken."""
        return LIKENESSES[self.like] if self.like else None

    @property
    def wanted_features(self) -> dict[str, Any]:
        """What of the encoder is not to be taken as usual for its family: fields of `FeatureChoice`."""
        wanted = {"layers": self.feature_layer, "norm": self.feature_norm, "class_token": self.class_token}
        return {name: value for name, value in wanted.items() if value is not None}

    @property
    def wanted_views(self) -> dict[str, Any] | None:
        """`views` of config.json; None for the whole image."""
        if self.views in (None, "whole"):
            return None
        wanted = {"rule": self.views, "max_tiles": self.max_tiles, "scales": self.scales, "pooling": self.pooling}
        return {name: value for name, value in wanted.items() if value is not None}

    @property
    def wanted_pixels(self) -> dict[str, Any]:
        """Fields of the image processor that flags name."""
        names = ("fit", "resample", "antialias", "pad_color", "image_mean", "image_std")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @classmethod
    def of(cls, args: argparse.Namespace) -> "AssembledParts":
        """From the flags."""
        return cls(**{name: getattr(args, name) for name in cls.__dataclass_fields__})


def build_parser(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The flags of `qwen-vqa assemble`."""
    add = parser.add_argument
    add("--vision-encoder", metavar="ID_OR_PATH", help="ViT, CLIP, SigLIP or DINOv2: hub id or folder")
    add("--language-model", metavar="ID_OR_PATH", help="a causal language model: hub id or folder")
    add(
        "--from-llava",
        metavar="ID_OR_PATH",
        help="a whole LLaVA checkpoint in place of the parts: Transformers' layout (llava-hf/*) or the LLaVA "
        "repository's; of the latter, the two flags above replace what its config.json names",
    )
    add(
        "--connector",
        type=Path,
        metavar="FILE",
        help="final_connector.pth, mm_projector.bin, ... (default: a fresh one)",
    )
    add("--adapter", type=Path, metavar="DIR", help="PEFT LoRA folder of the language model")
    add(
        "--merge-adapter",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="merge the adapter into the language model's weights, so that the checkpoint's name answers as trained; "
        "with --no-merge-adapter it is served beside the base model, by its own name (default: merge)",
    )
    add(
        "--adapter-name",
        metavar="NAME",
        help="with --no-merge-adapter: the adapter's model name when served (default: the folder's name)",
    )
    add(
        "--like",
        choices=list(LIKENESSES),
        help="prompt, picture fit and decoding of the original project's train.py (original) or app.py (original-app); "
        "the three flags below change single ones",
    )
    add(
        "--image-position",
        choices=get_args(ImagePosition),
        help="where training put images: inline where the user put them; prefix before the system turn, as the "
        "original does; line first in their turn, each on a line, as LLaVA does (default: inline)",
    )
    add("--system-prompt", help=f"of conversations without one; '' for none (default: {QWEN_SYSTEM_PROMPT!r})")
    add(
        "--fit",
        choices=get_args(Fit),
        help="how training made pictures square: squash scales both sides; crop scales the shortest and cuts out the "
        "middle; pad scales the longest and pads with black below or beside; pad-center pads around the middle "
        "(default: as the encoder's preprocessor file says; pad without one)",
    )
    add(
        "--resample",
        choices=get_args(Resample),
        help="how training computed their pixels (default: as that file says; bilinear without one)",
    )
    add(
        "--antialias",
        action=argparse.BooleanOptionalAction,
        help="whether it smoothed what became smaller: Pillow, torchvision and Transformers do, OpenCV does not "
        "(default: yes with such a file, no without)",
    )
    add(
        "--pad-color",
        type=int,
        nargs=3,
        metavar="N",
        help="RGB, 0 to 255, around a picture with --fit pad-center (default: the mean, as LLaVA has it)",
    )
    add("--image-mean", type=float, nargs=3, metavar="X", help="of RGB in 0 to 1 (default: as that file says, or 0.5)")
    add("--image-std", type=float, nargs=3, metavar="X", help="of RGB in 0 to 1 (default: as that file says, or 0.5)")
    add(
        "--feature-layer",
        type=int,
        nargs="+",
        metavar="N",
        help="the encoder's layers whose outputs the connector is given, as Transformers counts hidden states; several "
        "are joined (default: -1 of ViT, SigLIP and DINOv2, -2 of CLIP)",
    )
    add(
        "--feature-norm",
        action=argparse.BooleanOptionalAction,
        help="apply the encoder's last norm to them (default: yes, of CLIP no)",
    )
    add(
        "--class-token",
        action=argparse.BooleanOptionalAction,
        help="keep the features of class and register tokens (default: yes of ViT, no of CLIP and DINOv2)",
    )
    add(
        "--connector-layers",
        type=int,
        choices=[1, 2, 3],
        help="Linear layers of a fresh connector, with GELU between them (default: 2)",
    )
    add(
        "--pixel-shuffle",
        type=int,
        default=1,
        metavar="N",
        help="the connector joins squares of N x N features, so that an image takes N x N times fewer tokens "
        "(default: %(default)s)",
    )
    add(
        "--views",
        choices=["whole", "s2", "tiles"],
        help="what the encoder sees of a picture: the whole; s2 the whole at several sizes, features joined, no token "
        "more; tiles the whole, then parts at the encoder's size, for small text (default: whole)",
    )
    add("--max-tiles", type=int, metavar="N", help="with --views tiles: how many at most (default: 6)")
    add(
        "--scales",
        type=int,
        nargs="+",
        metavar="N",
        help="with --views s2: sizes, in sizes of the encoder's view (default: 1 2)",
    )
    add(
        "--pooling",
        choices=POOLINGS,
        help="with --views s2: how features of the larger sizes come to one grid: averaged by area, or joined, so that "
        "the connector is wider (default: area)",
    )
    add("--dtype", default="auto", choices=["auto", *DTYPES], help="of all weights (default: each part keeps its own)")
    add("--seed", type=seed_number, default=0, help="of a fresh connector (default: %(default)s)")
    add("-o", "--output", required=True, type=Path, metavar="DIR", help="the checkpoint folder to write")
    return parser


def check(args: argparse.Namespace) -> None:
    """Raises UserError for what is wrong with the flags, or not there: said before PyTorch is imported."""
    parts = AssembledParts.of(args)
    if parts.connector is not None and not parts.connector.exists():
        raise UserError(f"no connector at {parts.connector}: there is no such file.")
    if parts.adapter is not None and not parts.adapter.is_dir():
        raise UserError(f"no adapter at {parts.adapter}: there is no such folder.")
    for source, what, example in (
        (parts.vision_encoder, "vision encoder", "google/vit-base-patch32-384"),
        (parts.language_model, "language model", "Qwen/Qwen2.5-3B-Instruct"),
        (parts.from_llava, "LLaVA checkpoint", "llava-hf/llava-interleave-qwen-0.5b-hf"),
    ):
        if source is not None:
            check_source(source, what, example)
