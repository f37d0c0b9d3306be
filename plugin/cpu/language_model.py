"""What the model does for its language model on a CPU alone, in two calls: when it is built, and once it is loaded."""

import torch
from torch import nn

from qwen_vqa.plugin.command.host_memory import release_free_memory
from qwen_vqa.plugin.config import QwenVqaConfig
from qwen_vqa.plugin.cpu.embedding import compile_output_layer, hold_embeddings_once
from qwen_vqa.plugin.cpu.linear import compile_linear_layers, hold_linear_layers
from qwen_vqa.plugin.cpu.lora_device import give_empty_weights
from qwen_vqa.plugin.vllm_model_api import VllmConfig


def hold_in_stored_type(language_model: nn.Module, vllm_config: VllmConfig, config: QwenVqaConfig) -> None:
    """Hold embeddings and linear layers also in the checkpoint's float type, where they are computed in float32."""
    named = config.dtype
    stored = getattr(torch, named) if isinstance(named, str) else named
    hold_embeddings_once(language_model, vllm_config, stored)
    hold_linear_layers(language_model, vllm_config, stored)


def finish_loading(language_model: nn.Module, takes_adapters: bool) -> None:
    """Once all weights are loaded and packed: what vLLM's LoRA and the products of few rows need."""
    if takes_adapters:
        give_empty_weights(language_model)
    compile_output_layer(language_model)
    compile_linear_layers(language_model)
    release_free_memory()
