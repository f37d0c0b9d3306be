"""A causal language model and its tokenizer, from the hub or a folder."""

import re
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from qwen_vqa.plugin.chat.chat_template import CONTROL_TOKENS, IMAGE_TOKEN
from qwen_vqa.plugin.errors import UserError, first_line_of
from qwen_vqa.train.assembly.foreign_files import reading
from qwen_vqa.train.assembly.quiet_loading import quiet_loading

# What a tokenizer that speaks ChatML has, though it was not made for pictures.
_CHATML = ("<|im_start|>", "<|im_end|>")
_NAMES_SHOWN = 6
# What weights of a LLaVA have beside the language model's.
_LARGER_MODELS = re.compile(r"(?:^|\.)(?:mm_projector|vision_tower|image_newline)\b|rotary_emb\.inv_freq$")
_WORDS = "What is it?"


def load_language_model(
    id_or_path: str, dtype: str | torch.dtype = "auto", config: PretrainedConfig | None = None
) -> PreTrainedModel:
    """The model, in `dtype`, or in its own float type.

    Args:
        config: in place of the one beside the weights, where they are of a larger model.

    Raises:
        UserError: there is none, or weights are missing.
    """
    try:
        with reading("language model", id_or_path), quiet_loading():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                id_or_path, dtype=dtype, config=config, output_loading_info=True
            )
    except UserError as error:
        if isinstance(error.__cause__, (OSError, ValueError)) and not isinstance(error.__cause__, FileNotFoundError):
            raise _absent(id_or_path, error.__cause__) from error
        raise
    model, loading = loaded
    if missing := sorted(loading["missing_keys"]):
        raise UserError(f"the language model {id_or_path} lacks the weights {', '.join(missing[:_NAMES_SHOWN])}.")
    others = sorted(name for name in loading["unexpected_keys"] if not _LARGER_MODELS.search(name))
    if config is not None and others:
        raise UserError(
            f"{id_or_path} has weights that a {config.model_type} has no place for: {', '.join(others[:_NAMES_SHOWN])}"
            ". Is the model_type of its config.json right?"
        )
    return model


def load_tokenizer(id_or_path: str) -> PreTrainedTokenizerBase:
    """The tokenizer.

    Raises:
        UserError: there is none.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(id_or_path)
    except (OSError, ValueError) as error:
        raise _absent(id_or_path, error) from error
    if not tokenizer(_WORDS)["input_ids"]:
        raise UserError(f"the tokenizer of {id_or_path} knows no words: tokenizer.json is missing. Copy it, too.")
    return tokenizer


def _absent(id_or_path: str, error: Exception) -> UserError:
    return UserError(
        f"no language model at {id_or_path}: {first_line_of(error)}. Give a hub id "
        "such as Qwen/Qwen2.5-3B-Instruct or a folder with config, weights and tokenizer."
    )


def add_image_tokens(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, name: str) -> None:
    """Give a ChatML tokenizer the tokens that stand for images, where it was made without.

    Their embeddings are never read: LLaVA puts images between a turn's words without any token around them.

    Raises:
        UserError: it does not speak ChatML.
    """
    vocabulary = tokenizer.get_vocab()
    if missing := [token for token in _CHATML if token not in vocabulary]:
        raise UserError(
            f"the tokenizer of {name} lacks {' and '.join(missing)}. LLaVA models that speak ChatML are taken, such as "
            "those on Qwen; prompts of the form USER: ... ASSISTANT: (Vicuna) are not supported."
        )
    tokenizer.add_tokens([token for token in CONTROL_TOKENS if token not in vocabulary], special_tokens=True)
    rows: int = model.get_input_embeddings().num_embeddings  # type: ignore[assignment] # an nn.Embedding's
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer))


def image_token_id(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, name: str) -> int:
    """The token that an image's features stand in for.

    Raises:
        UserError: the tokenizer has none, or the model no embedding for it.
    """
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
    return int(token_id)
