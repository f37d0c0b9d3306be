"""What `qwen-vqa assemble` is told: its flags, and the parts that they name."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from qwen_vqa.plugin.chat.chat_template import QWEN_SYSTEM_PROMPT, ImagePosition
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.hub_checkpoint import check_source
from qwen_vqa.plugin.views.fit import Fit
from qwen_vqa.train.assembly.original_format import LIKENESSES, Likeness

DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class AssembledParts:
    """What a checkpoint is assembled from, and how.

    Without `connector` there is a fresh one, drawn with `seed`, to be trained. What is None is as `like` has it, or
    else as it is by default. `dtype` "auto": each part keeps its own; `adapter_name` is what a request will call an
    adapter that is kept apart.
    """

    vision_encoder: str
    language_model: str
    output: Path
    connector: Path | None = None
    adapter: Path | None = None
    adapter_name: str | None = None
    merge_adapter: bool = True
    like: str | None = None
    image_position: ImagePosition | None = None
    system_prompt: str | None = None
    fit: Fit | None = None
    dtype: str = "auto"
    seed: int = 0
    feature_layer: list[int] | None = None
    feature_norm: bool | None = None
    class_token: bool | None = None

    def __post_init__(self) -> None:
        if self.adapter_name is not None and (self.adapter is None or self.merge_adapter):
            raise UserError("--adapter-name names an adapter that is kept apart: add --adapter and --no-merge-adapter.")
        if self.output.exists() and (not self.output.is_dir() or any(self.output.iterdir())):
            raise UserError(f"the output folder {self.output} exists and is not empty; give another -o.")
        if self.dtype not in ("auto", *DTYPES):
            raise UserError(f"--dtype {self.dtype}: it must be auto, {', '.join(DTYPES)}.")
        if self.like is not None and self.like not in LIKENESSES:
            raise UserError(f"--like {self.like}: it must be one of {', '.join(LIKENESSES)}.")

    @property
    def likeness(self) -> Likeness | None:
        """The script whose prompt, pixels and decoding are taken."""
        return LIKENESSES[self.like] if self.like else None

    @property
    def wanted_features(self) -> dict[str, Any]:
        """What of the encoder is not to be taken as usual for its family: fields of `FeatureChoice`."""
        wanted = {"layers": self.feature_layer, "norm": self.feature_norm, "class_token": self.class_token}
        return {name: value for name, value in wanted.items() if value is not None}

    @classmethod
    def of(cls, args: argparse.Namespace) -> "AssembledParts":
        """From the flags."""
        return cls(**{name: getattr(args, name) for name in cls.__dataclass_fields__})


def build_parser(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The flags of `qwen-vqa assemble`."""
    add = parser.add_argument
    add("--vision-encoder", required=True, metavar="ID_OR_PATH", help="ViT, CLIP, SigLIP or DINOv2: hub id or folder")
    add("--language-model", required=True, metavar="ID_OR_PATH", help="a causal language model: hub id or folder")
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
        help="where training put images: inline where the user put them, or prefix before the system turn, as the "
        "original does (default: inline)",
    )
    add("--system-prompt", help=f"of conversations without one; '' for none (default: {QWEN_SYSTEM_PROMPT!r})")
    add(
        "--fit",
        choices=get_args(Fit),
        help="how training made pictures square: pad scales the longest side and pads with black, squash scales both "
        "sides (default: pad)",
    )
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
    add("--dtype", default="auto", choices=["auto", *DTYPES], help="of all weights (default: each part keeps its own)")
    add("--seed", type=int, default=0, help="of a fresh connector (default: %(default)s)")
    add("-o", "--output", required=True, type=Path, metavar="DIR", help="the checkpoint folder to write")
    return parser


def check(args: argparse.Namespace) -> None:
    """Raises UserError for what is wrong with the flags, or not there: said before PyTorch is imported."""
    parts = AssembledParts.of(args)
    if parts.connector is not None and not parts.connector.exists():
        raise UserError(f"no connector at {parts.connector}: there is no such file.")
    if parts.adapter is not None and not parts.adapter.is_dir():
        raise UserError(f"no adapter at {parts.adapter}: there is no such folder.")
    check_source(parts.vision_encoder, "vision encoder", "google/vit-base-patch32-384")
    check_source(parts.language_model, "language model", "Qwen/Qwen2.5-3B-Instruct")
