"""Which tokens the loss counts: the assistant's, from the first of the answer to `<|im_end|>`."""

import torch
from transformers import PreTrainedTokenizerBase

from qwen_vqa.plugin.chat.chat_format import CHATML

IGNORED = -100


def assistant_labels(input_ids: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Labels [T] for a ChatML prompt [T]: -100 everywhere but on assistant answers and the `<|im_end|>` after each.

    The turns are found by their control tokens, which nobody can type (see the chat template). An
    answer cut off by truncation counts as far as it goes.
    """
    header = tokenizer.encode(CHATML.assistant_start, add_special_tokens=False)
    turn_end = tokenizer.convert_tokens_to_ids(CHATML.turn_end)
    ids = input_ids.tolist()
    labels = torch.full_like(input_ids, IGNORED)
    position = 0
    while position <= len(ids) - len(header):
        if ids[position : position + len(header)] != header:
            position += 1
            continue
        start = position + len(header)
        end = ids.index(turn_end, start) + 1 if turn_end in ids[start:] else len(ids)
        labels[start:end] = input_ids[start:end]
        position = end
    return labels
