"""Small LLaVA models of Transformers, and the files that they and the LLaVA repository leave."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    Qwen2Config,
    SiglipImageProcessorPil,
)

from tests.tiny import DEMO

SIZE = 56
VISION: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "image_size": SIZE,
    "patch_size": 14,
}
TEXT: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 192,
    "max_position_embeddings": 1024,
    "bos_token_id": None,
}
TOKENIZER = AutoTokenizer.from_pretrained(DEMO)
IMAGE_ID = TOKENIZER.convert_tokens_to_ids("<|image_pad|>")
WIDER = 40  # rows of the embedding that no token has, as Qwen's 151,936 are
SQUARE, SHORTEST = {"height": SIZE, "width": SIZE}, {"shortest_edge": SIZE}
CLIP_PIXELS = CLIPImageProcessorPil(size=SHORTEST, crop_size=SQUARE)
SIGLIP_PIXELS = SiglipImageProcessorPil(size=SQUARE)
PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]  # height, width
NEXT_PIXELS = LlavaNextImageProcessorPil(size=SHORTEST, crop_size=SQUARE, image_grid_pinpoints=PINPOINTS)


def llava(
    vision: type = CLIPVisionConfig, text: type = Qwen2Config, tied: bool = False, tiles: bool = False, **fields: Any
) -> Any:
    """Random weights, large enough that the logits depend on every part; with tiles a LLaVA-NeXT."""
    torch.manual_seed(0)
    config, class_ = LlavaConfig, LlavaForConditionalGeneration
    if tiles:
        config, class_ = LlavaNextConfig, LlavaNextForConditionalGeneration
        fields["image_grid_pinpoints"] = PINPOINTS
    model = class_(
        config(
            vision_config=vision(**VISION),
            text_config=text(
                **TEXT, vocab_size=len(TOKENIZER) + WIDER, tie_word_embeddings=tied, eos_token_id=TOKENIZER.eos_token_id
            ),
            image_token_index=IMAGE_ID,
            tie_word_embeddings=tied,
            **fields,
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and "layrnorm" not in name:
                parameter.normal_(0, 0.12)
    return model.eval()


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    siglip = model.config.vision_config.model_type.startswith("siglip")
    tiles = hasattr(model.model, "image_newline")
    (NEXT_PIXELS if tiles else SIGLIP_PIXELS if siglip else CLIP_PIXELS).save_pretrained(folder)
    return folder


def question(images: int, tokens: int) -> torch.Tensor:
    """Random ids around `images` images."""
    chance = torch.Generator().manual_seed(1)
    words = torch.randint(0, 500, (1, 9), generator=chance)
    image = torch.full((1, tokens), IMAGE_ID)
    return torch.cat([words[:, :4], *[image] * images, words[:, 4:]], dim=1)


def of_the_repository(theirs: Any, folder: Path, suffix: str = ".bin", tower: bool = False, **config: Any) -> Path:
    """The same weights as the LLaVA repository's train.py leaves them, beside its encoder's folder, `clip`."""
    clip = CLIPVisionModel(theirs.config.vision_config)
    clip.load_state_dict(theirs.model.vision_tower.state_dict())
    if tower:  # what the id names is another, and the weights are the trained one's
        with torch.no_grad():
            for parameter in clip.parameters():
                parameter.add_(0.1)
    clip.save_pretrained(folder.parent / "clip")
    CLIP_PIXELS.save_pretrained(folder.parent / "clip")
    folder.mkdir()
    projector = theirs.model.multi_modal_projector.state_dict()
    named = {"linear_1": "0", "linear_2": "2"}
    state = {f"model.{name}": value for name, value in theirs.model.language_model.state_dict().items()}
    state["lm_head.weight"] = theirs.lm_head.weight.detach()
    state |= {f"model.mm_projector.{named[n.split('.')[0]]}.{n.split('.')[1]}": v for n, v in projector.items()}
    if tower:
        weights = theirs.model.vision_tower.state_dict()
        state |= {f"model.vision_tower.vision_tower.vision_model.{name}": value for name, value in weights.items()}
    if hasattr(theirs.model, "image_newline"):
        state["model.image_newline"] = theirs.model.image_newline.detach()
    state = {name: value.clone() for name, value in state.items()}
    if suffix == ".bin":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    text = theirs.config.text_config.to_dict() | {"model_type": "llava_qwen", "architectures": ["LlavaQwenForCausalLM"]}
    mm = {
        "mm_vision_tower": str(folder.parent / "clip"),
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": VISION["hidden_size"],
        "image_aspect_ratio": "pad",
        "mm_use_im_start_end": False,
        "tune_mm_mlp_adapter": False,
    }
    (folder / "config.json").write_text(json.dumps(text | mm | config))
    TOKENIZER.save_pretrained(folder)
    return folder
