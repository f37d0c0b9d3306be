"""The training loop: transformers' Trainer, with encoder, connector and language model in groups of their own."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

from qwen_vqa.plugin.command.file_mode import give_usual_mode
from qwen_vqa.plugin.errors import UserError, first_line_of
from qwen_vqa.train.model.reference_checkpoint import load_reference
from qwen_vqa.train.model.reference_model import QwenVqaForConditionalGeneration
from qwen_vqa.train.ranks import any_rank, gathered
from qwen_vqa.train.recipe import save_config
from qwen_vqa.train.run_checkpoints import STAGING, publish
from qwen_vqa.train.training_config import TrainingConfig

CONNECTOR_FILE = "connector.safetensors"
LANGUAGE_FILE = "language_model.safetensors"
ENCODER_FILE = "vision_encoder.safetensors"


def load_for_training(
    base: Path, config: TrainingConfig, arguments: TrainingArguments
) -> QwenVqaForConditionalGeneration:
    """The model of a checkpoint folder, frozen and trained parts as the run computes.

    Frozen weights have the precision of the run, trained ones float32: the gradient scaler of float16 refuses
    gradients in float16, and updates of a small learning rate are lost in 16 bits.
    """
    precision = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else torch.float32
    stored = AutoConfig.from_pretrained(base).dtype
    # Weights that are trained are not rounded to 16 bits before.
    loaded_as = torch.float32 if config.full_language_model else precision
    torch.manual_seed(config.seed)  # the adapter's initial weights
    model = load_reference(base, loaded_as, config.load_in)
    model.config.dtype = stored  # as which `export` writes it
    prepare_model(model, config)
    return model


def prepare_model(model: QwenVqaForConditionalGeneration, config: TrainingConfig) -> None:
    """Freeze what stays, put the adapter in place, and hold what is trained in float32.

    Half-precision master weights would lose updates of a learning rate such as 5e-5.
    """
    model.requires_grad_(False)
    model.connector.requires_grad_(True).float()
    if config.encoder_layers:
        _train_encoder(model, config.encoder_layers)
    if getattr(model, "is_quantized", False):
        # The Trainer refuses rounded weights unless something whole is trained on top of them, and looks for that
        # in the model itself only: ours is the connector, and the adapter further in.
        model._hf_peft_config_loaded = True
    if config.full_language_model:
        model.language_model.requires_grad_(True).float()
    elif config.rank:
        lora = LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=list(config.target_modules),
            task_type="CAUSAL_LM",
        )
        model.language_model = get_peft_model(model.language_model, lora)


def _train_encoder(model: QwenVqaForConditionalGeneration, last_layers: int) -> None:
    """The last layers and the norm behind them; with -1 the embeddings, too."""
    encoder = model.vision_encoder.float()
    if last_layers > len(encoder.layers):
        raise UserError(
            f"encoder_layers is {last_layers}, and {len(encoder.layers)} of the vision encoder are used: give fewer, "
            "or -1 for all of it."
        )
    parts = [encoder] if last_layers < 0 else [*encoder.layers[-last_layers:], encoder.final_norm]
    for part in parts:
        part.requires_grad_(True)


def trainable_parts(model: QwenVqaForConditionalGeneration) -> dict[str, list[nn.Parameter]]:
    """The parameters that are trained, by the part they belong to."""
    return {
        part: [parameter for parameter in getattr(model, part).parameters() if parameter.requires_grad]
        for part in ("vision_encoder", "connector", "language_model")
    }


class QwenVqaTrainer(Trainer):
    """Saves and resumes what is trained, not the frozen rest; one learning rate a part.

    Args:
        config: the run's config; the other arguments are transformers' Trainer's.
    """

    model: QwenVqaForConditionalGeneration  # type: ignore[assignment] # transformers takes any

    def __init__(self, *args: Any, config: TrainingConfig, **kwargs: Any) -> None:
        self.config = config
        super().__init__(*args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW over the parts that are trained, each with its learning rate; no decay on vectors."""
        if self.optimizer is None:
            rates = {
                "vision_encoder": self.config.encoder_learning_rate,
                "connector": self.config.connector_learning_rate,
                "language_model": self.config.learning_rate,
            }
            groups = [
                {
                    "name": part,
                    "params": [parameter for parameter in parameters if (parameter.ndim > 1) == is_matrix],
                    "lr": rates[part],
                    "weight_decay": self.config.weight_decay if is_matrix else 0.0,
                }
                for part, parameters in trainable_parts(self.model).items()
                for is_matrix in (True, False)
            ]
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = optimizer_class([group for group in groups if group["params"]], **options)
        return self.optimizer

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """transformers' loss of a batch, which has to be a number.

        Raises:
            UserError: in one of the run's processes it is not, and then in all of them; the message names the step and
                the batch's samples.
        """
        sample_ids = inputs.pop("sample_ids", [])
        result = super().compute_loss(model, inputs, *args, **kwargs)
        loss = result[0] if isinstance(result, tuple) else result
        is_number = bool(torch.isfinite(loss))
        if any_rank(not is_number, loss.device):
            bad = None if is_number else (loss.item(), sample_ids)
            value, samples = next(one for one in gathered(bad) if one is not None)
            raise UserError(
                f"the loss is {value} at step {self.state.global_step + 1}, on the samples "
                f"{', '.join(samples)}. {self._last_good()} Look at these samples; a lower learning rate or "
                "--precision bfloat16 or float32 may help."
            )
        return result

    def _last_good(self) -> str:
        last = get_last_checkpoint(str(self.args.output_dir))
        return f"The last good checkpoint is {last}." if last else "No checkpoint was written yet."

    def _get_output_dir(self, trial: Any) -> str:
        return str(Path(str(self.args.output_dir)) / STAGING)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write to a staging folder, and move the checkpoint into place when it is whole."""
        output = Path(str(self.args.output_dir))
        self._check_weights()
        self._all_save(lambda: super(QwenVqaTrainer, self)._save_checkpoint(model, trial))

        def publish_it() -> None:
            if self.args.should_save:
                publish(output, f"checkpoint-{self.state.global_step}")
                rotate_checkpoints(str(output), self.args.save_total_limit)

        self._all_save(publish_it)

    def _all_save(self, act: Callable[[], None]) -> None:
        """Do it in all processes; where it fails in one of them, it has failed in all."""
        error = None
        try:
            act()
        except (OSError, RuntimeError, SafetensorError) as raised:  # torch.save: RuntimeError when the disk is full
            error = raised
        faults = [fault for fault in gathered(error and first_line_of(error)) if fault is not None]
        if faults:
            if self.args.should_save:
                shutil.rmtree(Path(str(self.args.output_dir)) / STAGING, ignore_errors=True)
            raise UserError(
                f"the checkpoint of step {self.state.global_step} could not be saved: {faults[0]}. "
                f"{self._last_good()} Free some space and go on with --resume."
            ) from error

    def _check_weights(self) -> None:
        """All processes have the same weights, and say the same of them."""
        model = self.accelerator.unwrap_model(self.model)
        unsound = [name for name, value in model.named_parameters() if value.requires_grad and not _finite(value)]
        if unsound:
            raise UserError(
                f"the weights {', '.join(unsound[:3])} are not numbers any more after step {self.state.global_step}: "
                f"they are not saved. {self._last_good()} Try a lower learning rate."
            )

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        model = self.accelerator.unwrap_model(self.model)
        save_trained(model, folder)
        save_config(self.config, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_trained(self.model, Path(resume_from_checkpoint))


def save_trained(model: QwenVqaForConditionalGeneration, folder: Path) -> None:
    """Write the connector and, if they are trained, the encoder, and the adapter or the language model."""
    save_file(_contiguous(model.connector.state_dict()), folder / CONNECTOR_FILE)
    if trainable_parts(model)["vision_encoder"]:
        save_file(_contiguous(model.vision_encoder.state_dict()), folder / ENCODER_FILE)
    language_model = model.language_model
    if isinstance(language_model, PeftModel):
        language_model.save_pretrained(str(folder / "adapter"))
    elif any(parameter.requires_grad for parameter in language_model.parameters()):
        save_file(_contiguous(dict(language_model.named_parameters())), folder / LANGUAGE_FILE)
    give_usual_mode(folder)


def load_trained(model: QwenVqaForConditionalGeneration, folder: Path) -> None:
    """Take back what `save_trained` wrote.

    Raises:
        UserError: the folder holds no such run, or one with other shapes.
    """
    if not (folder / CONNECTOR_FILE).is_file():
        raise UserError(f"{folder} is not a training checkpoint: it has no {CONNECTOR_FILE}.")
    try:
        model.connector.load_state_dict(load_file(folder / CONNECTOR_FILE))
        if trainable_parts(model)["vision_encoder"]:
            model.vision_encoder.load_state_dict(load_file(folder / ENCODER_FILE))
        if isinstance(model.language_model, PeftModel):
            adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
            names = get_peft_model_state_dict(model.language_model).keys()
            if names != adapter.keys():
                raise UserError(f"the adapter in {folder} has other tensors: {sorted(names ^ adapter.keys())[:4]}.")
            set_peft_model_state_dict(model.language_model, adapter)
        elif (folder / LANGUAGE_FILE).is_file():
            missing, unexpected = model.language_model.load_state_dict(load_file(folder / LANGUAGE_FILE), strict=False)
            tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
            if unexpected or set(missing) - tied:
                raise UserError(f"{folder / LANGUAGE_FILE}: missing {missing}, unexpected {unexpected}.")
    except (RuntimeError, OSError) as error:
        raise UserError(f"cannot resume from {folder}: {error}") from error


def _finite(value: torch.Tensor) -> bool:
    return bool(torch.isfinite(value).all())


def _contiguous(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().contiguous() for name, value in state.items()}
