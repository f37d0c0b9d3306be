"""Training artefacts to a checkpoint folder that `qwen-vqa serve` takes.

    qwen-vqa assemble --vision-encoder google/vit-base-patch32-384 --language-model Qwen/Qwen2.5-3B-Instruct \\
        --connector final_connector.pth --adapter final_lora_model -o my-model
"""

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights

from qwen_vqa.plugin.adapter import AdapterSummary, check_adapter
from qwen_vqa.plugin.chat_template import IMAGE_TOKEN, QWEN_SYSTEM_PROMPT, ImagePosition, chat_template
from qwen_vqa.plugin.checkpoint import ADAPTER_FOLDER
from qwen_vqa.plugin.config import QwenVqaConfig
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.image_processor import QwenVqaImageProcessor
from qwen_vqa.plugin.processor import QwenVqaProcessor
from qwen_vqa.train.adapter import attach_adapter
from qwen_vqa.train.checkpoint import save_checkpoint
from qwen_vqa.train.connector_file import check_connector, load_connector
from qwen_vqa.train.model import Connector, QwenVqaForConditionalGeneration
from qwen_vqa.train.vision_weights import load_vision_encoder

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Parts:
    """What a checkpoint is assembled from, and how.

    Without `connector` there is a fresh one, drawn with `seed`, to be trained. `dtype` "auto" is the language
    model's own; `adapter_name` is what a request will call the adapter.
    """

    vision_encoder: str
    language_model: str
    output: Path
    connector: Path | None = None
    adapter: Path | None = None
    adapter_name: str | None = None
    merge_adapter: bool = False
    image_position: ImagePosition = "inline"
    system_prompt: str = QWEN_SYSTEM_PROMPT
    dtype: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.merge_adapter and self.adapter is None:
            raise UserError("--merge-adapter needs --adapter: there is nothing to merge.")
        if self.output.exists() and (not self.output.is_dir() or any(self.output.iterdir())):
            raise UserError(f"the output folder {self.output} exists and is not empty; give another -o.")
        if self.dtype not in ("auto", *DTYPES):
            raise UserError(f"--dtype {self.dtype}: it must be auto, {', '.join(DTYPES)}.")


def assemble(parts: Parts) -> list[str]:
    """Write the checkpoint; returns the lines that say what was written.

    The folder appears under its name only when it is whole.

    Raises:
        UserError: a part cannot be had, or its shapes do not fit the others.
    """
    connector = load_connector(parts.connector) if parts.connector else None
    vision_config, encoder = load_vision_encoder(parts.vision_encoder)
    language_model, tokenizer = _load_language_model(parts)
    text_width = language_model.config.hidden_size
    inner = text_width
    if connector and parts.connector:
        inner = check_connector(connector, vision_config.hidden_size, text_width, parts.connector)
    config = QwenVqaConfig(
        vision_config,
        language_model.config,
        {"hidden_size": inner},
        image_token_id=_image_token_id(tokenizer, language_model, parts.language_model),
    )
    summary = check_adapter(parts.adapter, config) if parts.adapter else None
    if parts.merge_adapter and parts.adapter:
        language_model = attach_adapter(language_model, parts.adapter).merge_and_unload()

    dtype = language_model.dtype
    # On the meta device, so that a 3B model is in memory once: every part is put in place below.
    with torch.device("meta"), no_init_weights():
        model = QwenVqaForConditionalGeneration(config)
    model.vision_encoder = encoder
    torch.manual_seed(parts.seed)
    model.connector = Connector(config)
    model.language_model = language_model
    if connector:
        model.connector.load_state_dict(connector)
    model.to(dtype)
    processor = QwenVqaProcessor(
        QwenVqaImageProcessor(vision_config.image_size, vision_config.patch_size),
        tokenizer,
        chat_template(parts.image_position, parts.system_prompt, tokenizer.all_special_tokens),
    )
    return _write(parts, model, processor, summary)


def _load_language_model(parts: Parts) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    dtype: str | torch.dtype = "auto" if parts.dtype == "auto" else DTYPES[parts.dtype]
    try:
        model = AutoModelForCausalLM.from_pretrained(parts.language_model, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(parts.language_model)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no language model at {parts.language_model}: {str(error).strip().splitlines()[0]} Give a hub id "
            "such as Qwen/Qwen2.5-3B-Instruct or a folder with config, weights and tokenizer."
        ) from error
    return model, tokenizer


def _image_token_id(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, name: str) -> int:
    token_id = tokenizer.get_vocab().get(IMAGE_TOKEN)
    if token_id is None:
        raise UserError(
            f"the tokenizer of {name} lacks {IMAGE_TOKEN}. Use a Qwen2 or Qwen2.5 tokenizer, or add "
            "ChatML's and the vision tokens to yours before training."
        )
    rows: int = model.get_input_embeddings().num_embeddings  # type: ignore[assignment] # an nn.Embedding's
    if token_id >= rows:
        raise UserError(
            f"{IMAGE_TOKEN} is token {token_id}, but {name} has only {rows} embeddings: resize them "
            "(model.resize_token_embeddings) before training."
        )
    return token_id


def _write(
    parts: Parts,
    model: QwenVqaForConditionalGeneration,
    processor: QwenVqaProcessor,
    adapter: AdapterSummary | None,
) -> list[str]:
    partial = parts.output.with_name(f".{parts.output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        save_checkpoint(partial, model, processor)
        adapter_line = "no adapter"
        if adapter and parts.adapter and parts.merge_adapter:
            adapter_line = f"{parts.adapter} (rank {adapter.rank}) merged into the language model"
        elif adapter and parts.adapter:
            name = parts.adapter_name or parts.adapter.resolve().name
            shutil.copytree(parts.adapter, partial / ADAPTER_FOLDER / name)
            adapter_line = f"{name} (rank {adapter.rank}, alpha {adapter.alpha}), kept apart in adapters/{name}"
        if parts.output.exists():
            parts.output.rmdir()
        partial.rename(parts.output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    config = model.config
    return [
        f"wrote {parts.output} ({sum(f.stat().st_size for f in parts.output.rglob('*')) / 1e9:.2f} GB, {model.dtype})",
        f"  vision encoder   {parts.vision_encoder}: {config.vision_config.image_size} px, "
        f"{config.num_image_tokens} tokens an image, width {config.vision_config.hidden_size}",
        f"  connector        {parts.connector or f'fresh (seed {parts.seed})'}: {config.vision_config.hidden_size} to "
        f"{config.connector['hidden_size']} to {config.text_config.hidden_size}",
        f"  language model   {parts.language_model}: {config.text_config.model_type}, "
        f"{config.text_config.num_hidden_layers} layers, width {config.text_config.hidden_size}",
        f"  adapter          {adapter_line}",
        f"  images           {parts.image_position}",
        f"serve it: qwen-vqa serve {parts.output}"
        if parts.connector
        else f"train it: qwen-vqa train {parts.output} --data train.jsonl -o runs/mine",
    ]


def build_parser(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The flags of `qwen-vqa assemble`."""
    add = parser.add_argument
    add("--vision-encoder", required=True, metavar="ID_OR_PATH", help="a ViT: hub id or folder")
    add("--language-model", required=True, metavar="ID_OR_PATH", help="a causal language model: hub id or folder")
    add(
        "--connector",
        type=Path,
        metavar="FILE",
        help="final_connector.pth, mm_projector.bin, ... (default: a fresh one)",
    )
    add("--adapter", type=Path, metavar="DIR", help="PEFT LoRA folder of the language model")
    add("--adapter-name", metavar="NAME", help="the adapter's model name when served (default: the folder's name)")
    add("--merge-adapter", action="store_true", help="merge the adapter into the language model's weights")
    add(
        "--image-position",
        choices=["inline", "prefix"],
        default="inline",
        help="where training put images: inline where the user put them, prefix before the system turn, as the "
        "original training script does (default: %(default)s)",
    )
    add("--system-prompt", default=QWEN_SYSTEM_PROMPT, help="of conversations without one (default: %(default)r)")
    add("--dtype", default="auto", choices=["auto", *DTYPES], help="of all weights (default: the language model's)")
    add("--seed", type=int, default=0, help="of a fresh connector (default: %(default)s)")
    add("-o", "--output", required=True, type=Path, metavar="DIR", help="the checkpoint folder to write")
    return parser


def run(args: argparse.Namespace) -> int:
    """`qwen-vqa assemble`."""
    fields = {name: getattr(args, name) for name in Parts.__dataclass_fields__}
    print("\n".join(assemble(Parts(**fields))))
    return 0
