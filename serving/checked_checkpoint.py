"""What `serve` looks at before it starts anything heavy, so that what is wrong is said plainly and at once."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from transformers import AutoConfig

from qwen_vqa.plugin.checkpoint_files import adapter_folders, check_checkpoint
from qwen_vqa.plugin.command.installed_command import how_to_install
from qwen_vqa.plugin.config import ARCHITECTURE, QwenVqaConfig
from qwen_vqa.plugin.errors import UserError, reason_of
from qwen_vqa.plugin.quantization import (
    SchemeFacts,
    quantization_config,
    scheme_of,
    schemes_served_here,
    why_not_served_here,
)
from qwen_vqa.plugin.registration import VLLM_MODEL, register_all
from qwen_vqa.plugin.views.image_processor import QwenVqaImageProcessor


@dataclass(frozen=True)
class CheckedCheckpoint:
    """A checkpoint that can be served, and its adapters."""

    folder: Path
    config: QwenVqaConfig
    adapters: dict[str, Path]
    scheme: SchemeFacts | None = None


def checked_checkpoint(folder: Path) -> CheckedCheckpoint:
    """Look at the files and the config; no weight is read.

    Raises:
        UserError: the checkpoint cannot be served, and why.
    """
    check_checkpoint(folder)
    register_all()
    config = AutoConfig.from_pretrained(folder)
    check_image_tokens(folder, config)
    return CheckedCheckpoint(folder, config, adapter_folders(folder), checked_scheme(folder))


def check_image_tokens(folder: Path, config: QwenVqaConfig) -> None:
    """Raises UserError where the processor would make other tokens of an image than the encoder has features."""
    processor = QwenVqaImageProcessor.from_pretrained(folder)
    tokens = processor.tokens_per_view
    if processor.views != config.views:
        raise UserError(
            f"{folder}: the image processor has views {processor.views}, and config.json {config.views}. Assemble the "
            "checkpoint again, or copy its processor's files from where it was assembled."
        )
    if tokens != config.tokens_per_view:
        raise UserError(
            f"{folder}: the image processor makes {tokens} tokens of a view, and the encoder of config.json "
            f"{config.tokens_per_view}. Assemble the checkpoint again, or copy its processor's files from where it was "
            "assembled."
        )


def checked_scheme(folder: Path) -> SchemeFacts | None:
    """How the checkpoint is quantised; None when it is not.

    Raises:
        UserError: this machine cannot serve that.
    """
    config = quantization_config(folder)
    if config is None:
        return None
    scheme = scheme_of(config)
    if reason := why_not_served_here(scheme):
        raise UserError(
            f"{folder} cannot be served here: {reason}. {scheme.name} is served by: {scheme.served_by}. Served here: "
            f"{', '.join(schemes_served_here()) or 'none'}, and 16 bits."
        )
    return scheme


def check_plugin() -> None:
    """Import what vLLM will import: it only logs a plugin that fails, and then knows no such architecture.

    Raises:
        UserError: vLLM or the plugin cannot be imported, with the reason.
    """
    try:
        import_module("vllm")
    except ImportError as error:
        raise UserError(
            f"vLLM cannot be imported ({error}): {how_to_install('cpu')} With a GPU, it is `[cuda]`."
        ) from error
    module, name = VLLM_MODEL.split(":")
    try:
        getattr(import_module(module), name)
    except Exception as error:  # whatever it is, vLLM would hide it
        raise UserError(
            f"the vLLM plugin cannot be loaded: {type(error).__name__}: {reason_of(error)}. `qwen-vqa doctor` shows "
            "the installed versions; the README lists those that were tested."
        ) from error


def register_imported_model() -> None:
    """The model's class in place of its name, for which vLLM starts a process on the first start to look at it."""
    module, name = VLLM_MODEL.split(":")
    import_module("vllm").ModelRegistry.register_model(ARCHITECTURE, getattr(import_module(module), name))
