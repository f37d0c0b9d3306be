"""The demo's tokenizer: byte-level BPE on the demo's own sentences, in Qwen2.5's format and specials.

python -m qwen_vqa.train.demo.tokenizer serving/demo_checkpoint
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import Qwen2Tokenizer

from qwen_vqa.train.demo import german
from qwen_vqa.train.drawn import words

# Qwen2.5's, so that a digit is a token of its own and a word keeps its leading space.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
# Added tokens that Qwen2.5 does not mark as special.
PLAIN_ADDED_TOKENS = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip
TOKENIZER_CONFIG = {
    "tokenizer_class": "Qwen2Tokenizer",
    "eos_token": "<|im_end|>",
    "pad_token": "<|endoftext|>",
    "bos_token": None,
    "unk_token": None,
    "add_prefix_space": False,
    "clean_up_tokenization_spaces": False,
    "errors": "replace",
    "split_special_tokens": False,
    "model_max_length": 2048,
    "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
}


def build_tokenizer(num_tokens: int = 896) -> Qwen2Tokenizer:
    """A tokenizer of `num_tokens` entries, the added ones included, trained on the demo's sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    added = len(SPECIAL_TOKENS) + len(PLAIN_ADDED_TOKENS)
    trainer = trainers.BpeTrainer(
        vocab_size=num_tokens - added,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in PLAIN_ADDED_TOKENS])
    with TemporaryDirectory() as folder:
        tokenizer.save(str(Path(folder, "tokenizer.json")))
        Path(folder, "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
        return Qwen2Tokenizer.from_pretrained(folder)


def corpus() -> Iterator[str]:
    """Every template filled with every name, colour and place, in the cases people type."""
    names = list(words.SHAPES) + list(words.EMOJI)
    colours = itertools.cycle(words.COLOURS)
    places = itertools.cycle([f"{place}" for row in words.PLACES for place in row])
    templates = [template for group in words.QUESTIONS.values() for template in group] + list(words.ANSWERS)
    for template, name in itertools.product(templates, names):
        colour = next(colours)
        sentence = template.format(
            thing=name,
            things=words.plural(name),
            a_thing=words.with_article(f"{colour} {name}"),
            colour=colour,
            place=f"at the {next(places)}",
            nth="first" if len(name) % 2 else "second",
            number=words.COUNT_WORDS[len(name) % 7],
        )
        yield sentence
        yield sentence.lower()
    yield from (f"{word} {word.capitalize()}" for word in words.DIGIT_WORDS for _ in range(20))
    yield from ("user", "assistant", "system") * 100
    yield from german_corpus()


def german_corpus() -> Iterator[str]:
    """What the bundled adapter answers."""
    fixed = (*german.FIXED.values(), *german.COLOURS.values(), *german.PLACES.values(), *german.NUMBERS, "die Zahl")
    for colour, name in itertools.product(german.COLOURS.values(), german.NOUNS):
        noun = german.noun_phrase(name)
        yield from (german.noun_phrase(name, colour), noun, noun.split()[-1])
    yield from fixed * 40


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where tokenizer.json and tokenizer_config.json go")
    folder = parser.parse_args(argv).folder
    build_tokenizer().save_pretrained(folder)
    print(f"wrote the tokenizer to {folder}")


if __name__ == "__main__":
    main()
