"""Calibration with images: AutoRound (arXiv:2309.05516) finds each rounding, one layer of the model at a time.

The reference model and the real processor make the first layer's input, image features included. Each layer is
tuned on what the quantised layers before it give, and freed: memory holds the model as it lies in its files, what is
rounded until it is written, the hidden states of all samples three times, and one layer in float32 with its gradients
(`options.calibration_bytes`).
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.float_instructions import multiplies
from qwen_vqa.plugin.processor import QwenVqaProcessor
from qwen_vqa.quantize.layers import LANGUAGE_MODEL
from qwen_vqa.quantize.schemes.int4 import Int4, scale_dtype
from qwen_vqa.quantize.schemes.scheme import Tensors
from qwen_vqa.train.data.collator import ConversationCollator, Sample
from qwen_vqa.train.model.compute_device import CPU
from qwen_vqa.train.model.reference_model import QwenVqaForConditionalGeneration, embedded_prompt

BATCH = 8
# Below this width, rounding to bfloat16 and back costs more than its faster products save.
BFLOAT16_FROM_WIDTH = 1024


def calibrate(
    model: QwenVqaForConditionalGeneration,
    processor: QwenVqaProcessor,
    samples: Iterable[Sample],
    scheme: Int4,
    iterations: int,
    seed: int,
    device: torch.device = CPU,
) -> dict[str, Tensors]:
    """Tensors of every Linear layer of the language model, by its name. The model's layers are used up.

    Args:
        samples: conversations with their images; all of their tokens count.
        iterations: tuning steps for each layer, over 8 samples each.
        device: where layers are tuned, one after the other; the model and the results stay on the CPU.
    """
    hidden = first_inputs(model, processor, samples, device)
    decoder = model.language_model.model
    decoder.rotary_emb.to(device)
    dtype = scale_dtype(model.language_model.dtype)
    results: dict[str, Tensors] = {}
    quantised: list[torch.Tensor] | None = None
    number = len(decoder.layers)
    with tqdm(total=number * iterations, desc="calibrating", unit="step") as progress:

        def count_step(*_: Any) -> None:
            if torch.is_grad_enabled():  # and not for a layer's outputs before and after
                progress.update()

        for index in range(number):
            progress.set_postfix_str(f"layer {index + 1} of {number}")
            block = DecoderBlock(decoder.layers[index].float(), decoder.rotary_emb).to(device)
            block.register_forward_pre_hook(count_step)
            quantised, hidden = _tune(block, model, processor, hidden, quantised, scheme, iterations, seed, dtype)
            block.cpu()
            for name, layer in block.layer.named_modules():
                if isinstance(layer, nn.Linear):
                    tuned: Any = layer.scale  # AutoRound sets it
                    scale = tuned.reshape(layer.out_features, -1).to("cpu", dtype)
                    stored = scheme.store(layer.weight.detach(), scale)
                    results[f"{LANGUAGE_MODEL}.model.layers.{index}.{name}"] = stored
            decoder.layers[index] = nn.Identity()
            progress.update((index + 1) * iterations - progress.n)  # a layer may be done sooner
    return results


def check_calibrates(model_type: str, model: nn.Module) -> None:
    """Raises UserError for a language model whose layers are not called as Qwen2's and Llama's are."""
    decoder = getattr(model, "model", None)
    if not hasattr(decoder, "layers") or not hasattr(decoder, "rotary_emb"):
        raise UserError(
            f"a {model_type} language model cannot be calibrated: its layers are not built as Qwen2's or Llama's are. "
            "Take --scheme int8, int8-bnb or nf4."
        )


class DecoderBlock(nn.Module):
    """One decoder layer, called with hidden states alone.

    Samples of different lengths share a batch: positions behind a sample's end are zero vectors and stay so.
    """

    def __init__(self, layer: nn.Module, rotary: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.__dict__["rotary"] = rotary  # the model's, not a part of this block

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[samples, T, D] to [samples, T, D]"""
        positions = torch.arange(hidden_states.shape[1], device=hidden_states.device).unsqueeze(0)
        rotary = self.__dict__["rotary"](hidden_states, positions)
        output = self.layer(hidden_states, attention_mask=None, position_ids=positions, position_embeddings=rotary)
        output = output[0] if isinstance(output, tuple) else output
        return output * hidden_states.ne(0).any(dim=-1, keepdim=True)


class _OneBlockModel(nn.Module):
    """What AutoRound takes for a model."""

    def __init__(self, block: DecoderBlock, config: Any, device: torch.device) -> None:
        super().__init__()
        self.layers = nn.ModuleList([block])
        self.config = config
        self.dtype, self.device = torch.float32, device

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.layers[0](hidden_states)


@torch.no_grad()
def first_inputs(
    model: QwenVqaForConditionalGeneration,
    processor: QwenVqaProcessor,
    samples: Iterable[Sample],
    device: torch.device = CPU,
) -> list[torch.Tensor]:
    """Embeddings of all samples, image features in their places: float32 [1, T, D] each, zero behind their ends."""
    collate = ConversationCollator(processor)
    for part in (model.vision_encoder, model.connector, model.get_input_embeddings()):
        part.to(device)
    embedded = []
    for sample in samples:
        batch = {name: tensor.to(device) for name, tensor in collate([sample]).items()}
        embedded.append(embedded_prompt(model, batch).float())
    longest = max(sample.shape[1] for sample in embedded)
    return [functional.pad(sample, (0, 0, 0, longest - sample.shape[1])) for sample in embedded]


def _tune(
    block: DecoderBlock,
    model: QwenVqaForConditionalGeneration,
    processor: QwenVqaProcessor,
    hidden: list[torch.Tensor],
    quantised: list[torch.Tensor] | None,
    scheme: Int4,
    iterations: int,
    seed: int,
    dtype: torch.dtype,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Round a block's weights in place; returns its outputs behind quantised layers and behind the original ones."""
    device = hidden[0].device
    with _quiet():
        from auto_round import AutoRound
        from auto_round.algorithms.quantization.sign_round.config import SignRoundConfig

        tuner = AutoRound(
            _OneBlockModel(block, model.config.text_config, device),
            tokenizer=processor.tokenizer,
            scheme="W4A16",
            alg_configs=SignRoundConfig(group_size=scheme.group_size, sym=True, iters=iterations),
            batch_size=min(BATCH, len(hidden)),
            nsamples=len(hidden),
            device_map=str(device),
            seed=seed,
            amp=model.config.text_config.hidden_size >= BFLOAT16_FROM_WIDTH and _multiplies_bfloat16(device),
            scale_dtype="fp16" if dtype == torch.float16 else "bf16",
            enable_torch_compile=False,
            low_cpu_mem_usage=False,
        )
        tuner.post_init()
        calls: list[Any] = [(((sample,), {}),) for sample in hidden]
        return tuner.quantize_block(block, calls, q_input=quantised, device=device, auto_offload=False)


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device does so itself. One that imitates it takes many times as long as for float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return multiplies("bfloat16", torch.cpu.get_capabilities())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """AutoRound says what it does at every layer; the progress bar says it here."""
    logger = logging.getLogger("autoround")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
