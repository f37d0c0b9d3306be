"""The demo's tokenizer: Qwen2.5's format and control tokens at a small size."""

import pytest

from qwen_vqa.train.demo.tokenizer import SPECIAL_TOKENS, build_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.mark.parametrize(
    "text",
    [
        "<|im_start|>user\nWhat colour is the star?<|im_end|>\n",
        "ein grüner Kreis",
        "日本 😀\n\n  tabs\tand spaces ",
        "unanswerable",
    ],
)
def test_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_digit_is_a_token(tokenizer):
    assert tokenizer.tokenize("427") == ["4", "2", "7"]


def test_control_tokens_are_single_and_qwens(tokenizer):
    for token in SPECIAL_TOKENS:
        assert len(tokenizer.encode(token)) == 1
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"


def test_building_it_again_gives_the_same(tokenizer):
    assert build_tokenizer().get_vocab() == tokenizer.get_vocab()
