"""LLaVA-NeXT's tiles: counts, pixels and logits are those of Transformers' own classes, of 200 sizes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlavaNextProcessor

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.processor import QwenVqaProcessor
from qwen_vqa.plugin.views.image_processor import LAYOUTS, TOKENS
from qwen_vqa.train.assembly.assemble import assemble
from qwen_vqa.train.assembly.assemble_flags import AssembledParts
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference
from qwen_vqa.train.model.reference_model import QwenVqaForConditionalGeneration
from tests.plugin.engine import Engine, Request
from tests.train.assembly.llava_models import (
    IMAGE_ID,
    NEXT_PIXELS,
    PINPOINTS,
    SIZE,
    TOKENIZER,
    llava,
    of_the_repository,
    saved,
)

CHANCE = np.random.default_rng(5)
SIZES = [
    *[
        (1, 4000),
        (4000, 1),
        (1, 1),
        (55, 55),
        (56, 56),
        (57, 57),
        (55, 57),
        (112, 56),
        (56, 112),
        (335, 336),
        (337, 336),
    ],
    *((int(width), int(height)) for width, height in CHANCE.integers(1, 400, (189, 2))),
]
FEW = [(90, 60), (60, 111), (57, 57), (300, 40), (1, 200), (200, 1)]


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def theirs():
    return llava(tiles=True)


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("next")
    assemble(AssembledParts(made / "model", from_llava=str(saved(theirs, made / "llava"))))
    return made / "model"


@pytest.fixture(scope="module")
def processor(folder: Path) -> QwenVqaProcessor:
    return load_processor(folder)


@pytest.fixture(scope="module")
def ours(folder: Path) -> QwenVqaForConditionalGeneration:
    return load_reference(folder)


def test_counts_and_pixels_of_200_sizes(processor: QwenVqaProcessor):
    counting = LlavaNextProcessor(
        NEXT_PIXELS, TOKENIZER, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    for width, height in SIZES:
        image = noise(width, height)
        made = processor.image_processor([image], return_tensors="pt")
        expected = NEXT_PIXELS([image], return_tensors="pt", do_pad=False)["pixel_values"][0]
        assert made["pixel_values"].shape == expected.shape, (width, height)
        torch.testing.assert_close(made["pixel_values"], expected, atol=2e-6, rtol=0)
        tokens = counting._get_number_of_features(height, width, SIZE, SIZE) - 1  # "default" leaves out the class token
        assert made[TOKENS].tolist() == [tokens] == [processor.image_processor.image_tokens(width, height)]


@pytest.mark.parametrize("sizes", [FEW[:1], FEW[1:4], FEW[4:]], ids=str)
def test_the_logits_are_those_of_transformers(theirs, ours, processor: QwenVqaProcessor, sizes: list[tuple[int, int]]):
    images = [noise(*size) for size in sizes]
    made = processor.image_processor(images, return_tensors="pt")
    words = torch.randint(0, 500, (1, 6), generator=torch.Generator().manual_seed(1))
    ids = torch.cat([words, *(torch.full((1, int(count)), IMAGE_ID) for count in made[TOKENS]), words], dim=1)
    pixels = NEXT_PIXELS(images, return_tensors="pt")
    with torch.inference_mode():
        expected = theirs(input_ids=ids, **pixels).logits
        found = ours(input_ids=ids, pixel_values=made["pixel_values"], view_layouts=made[LAYOUTS]).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_the_served_answers_are_those_of_transformers(theirs, folder: Path, processor: QwenVqaProcessor):
    """Requests of one and two images of different views, together in one engine, and once more from its caches."""
    requests = [
        Request(_prompt(processor, len(sizes)), [noise(*size) for size in sizes]) for sizes in (FEW[:1], FEW[1:3])
    ]
    requests += [Request(_prompt(processor, 1), [noise(*size)]) for size in FEW[3:]]
    with Engine(folder, max_model_len=1024) as engine:
        answers = engine.generate(requests, max_tokens=5)
        again = engine.generate(requests, max_tokens=5)
    assert again[1].cached_tokens
    for request, answer, second in zip(requests, answers, again, strict=True):
        assert answer.token_ids == second.token_ids
        inputs = processor(text=request.prompt, images=request.images, return_tensors="pt")
        assert answer.prompt_ids == inputs["input_ids"][0].tolist()
        ids = torch.cat([inputs["input_ids"], torch.tensor([answer.token_ids[:-1]])], dim=1)
        with torch.inference_mode():
            logits = theirs(input_ids=ids, **NEXT_PIXELS(request.images, return_tensors="pt")).logits[0]
        for step, logprobs in zip(logits[-len(answer.token_ids) :].log_softmax(-1), answer.logprobs, strict=True):
            for token, logprob in logprobs.items():
                assert logprob == pytest.approx(step[token].item(), abs=1e-3)


def _prompt(processor: QwenVqaProcessor, images: int) -> str:
    content = [{"type": "image"}] * images + [{"type": "text", "text": "what is it?"}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )


def test_the_repositorys_layout_writes_width_first(theirs, ours, tmp_path: Path):
    pinpoints = str([(width, height) for height, width in PINPOINTS])
    anyres = {
        "image_aspect_ratio": "anyres",
        "mm_patch_merge_type": "spatial_unpad",
        "image_grid_pinpoints": pinpoints,
    }
    repository = of_the_repository(theirs, tmp_path / "r", ".safetensors", **anyres)
    assemble(AssembledParts(tmp_path / "model", from_llava=str(repository)))
    again = load_reference(tmp_path / "model")
    assert again.config.views == ours.config.views
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in ours.state_dict().items())


def test_flat_tiles_are_refused(theirs, tmp_path: Path):
    repository = of_the_repository(theirs, tmp_path / "r", image_aspect_ratio="anyres", mm_patch_merge_type="flat")
    with pytest.raises(UserError, match="mm_patch_merge_type 'flat'"):
        assemble(AssembledParts(tmp_path / "model", from_llava=str(repository)))
