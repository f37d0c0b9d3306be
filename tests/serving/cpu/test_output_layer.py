"""Which way the output layer is held on a CPU, and what is told to the engine of it."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qwen_vqa.plugin.cpu.output_layout import MIXED, PACKED, SETTING, SHARED
from qwen_vqa.plugin.quantization import FACTS
from qwen_vqa.serving.checked_checkpoint import checked_checkpoint
from qwen_vqa.serving.cpu.cpu_choices import choose_output_layer, few_answers_note
from qwen_vqa.serving.cpu.cpu_memory import output_layer_bytes
from tests.tiny import make_checkpoint


@pytest.mark.parametrize(
    ("scheme", "asked", "chosen", "said"),
    [
        (None, None, MIXED, None),
        ("int8", None, MIXED, None),
        ("int4", None, SHARED, "--output-layer mixed"),
        ("nf4", None, SHARED, "--output-layer mixed"),
        ("int4", PACKED, PACKED, None),
        (None, SHARED, SHARED, None),
    ],
)
def test_4_bits_share_what_is_the_same(tiny_checkpoint: Path, scheme, asked, chosen, said):
    checkpoint = replace(checked_checkpoint(tiny_checkpoint), scheme=FACTS.get(scheme))
    args = Namespace(output_layer=asked, additional_config={"other": 1})
    note = choose_output_layer(args, checkpoint)
    assert args.output_layer == chosen
    assert args.additional_config == {"other": 1, SETTING: chosen}
    assert (said in note) if said else note is None


def test_nothing_is_shared_where_the_numbers_differ(tiny_checkpoint: Path):
    checkpoint = replace(checked_checkpoint(tiny_checkpoint), scheme=FACTS["int4"])
    checkpoint.config.text_config.tie_word_embeddings = False
    args = Namespace(output_layer=None, additional_config=None)
    assert choose_output_layer(args, checkpoint) is None
    assert args.additional_config == {SETTING: MIXED}


def test_a_packed_output_layer_takes_memory_of_its_own(tiny_checkpoint: Path):
    config = checked_checkpoint(tiny_checkpoint).config
    numbers = config.text_config.vocab_size * config.text_config.hidden_size
    assert output_layer_bytes(config, "bfloat16", PACKED) == 2 * numbers
    assert output_layer_bytes(config, "bfloat16", MIXED) == 2 * numbers
    assert output_layer_bytes(config, "float32", PACKED) == 4 * numbers
    assert output_layer_bytes(config, "bfloat16", SHARED) == 0
    config.text_config.tie_word_embeddings = False
    assert output_layer_bytes(config, "bfloat16", PACKED) == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, True),
        ({"dtype": "auto"}, False),
        ({"output_layer": PACKED}, False),
        ({"enforce_eager": True}, False),
        ({"enable_lora": True}, False),
    ],
)
def test_who_decodes_a_few_answers_from_the_input_embeddings_is_told(tmp_path: Path, changes: dict, said: bool):
    made = make_checkpoint(tmp_path, dtype=torch.bfloat16)
    checkpoint = checked_checkpoint(made)
    args = Namespace(
        **{"output_layer": MIXED, "dtype": "float32", "enforce_eager": False, "enable_lora": False, **changes}
    )
    assert few_answers_note(args, checkpoint) is None  # so small a table is not worth it
    checkpoint.config.text_config.vocab_size = 151_936
    note = few_answers_note(args, checkpoint)
    assert ("up to 4 answers at once" in note) if said else note is None
    checkpoint.config.text_config.tie_word_embeddings = False
    assert few_answers_note(args, checkpoint) is None
