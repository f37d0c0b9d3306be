"""Stock vLLM with its own LLaVA of a shape's dimensions, to see what the plugin itself costs.

python -m qwen_vqa.benchmarks.alternatives.vllm_llava 0.5b runs/llava-0.5b

CLIP's tower stands for the ViT: it has the same blocks, patches and width. LLaVA is told to keep CLS, as ours does.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from qwen_vqa.benchmarks.machine.model_shapes import SHAPES, answer_in_text, shape_config
from qwen_vqa.benchmarks.script import run
from qwen_vqa.plugin.chat.chat_template import chat_template
from qwen_vqa.plugin.config import QwenVqaConfig
from qwen_vqa.plugin.processor import QwenVqaProcessor
from qwen_vqa.plugin.views.image_processor import QwenVqaImageProcessor
from qwen_vqa.serving import DEMO_CHECKPOINT


def llava_checkpoint(name: str, folder: Path, seed: int = 0) -> Path:
    """A folder of the shape, made if it is not there, with random bfloat16 weights."""
    if (folder / "config.json").exists():
        return folder
    tokenizer = AutoTokenizer.from_pretrained(DEMO_CHECKPOINT)
    template = chat_template()
    if name == "demo":
        template = (DEMO_CHECKPOINT / "chat_template.jinja").read_text()  # without Qwen's system message
        ours = QwenVqaConfig.from_pretrained(DEMO_CHECKPOINT)
    else:
        ours = shape_config(SHAPES[name], QwenVqaProcessor(QwenVqaImageProcessor(384, 32), tokenizer, template))
    vision = ours.vision_config
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=vision.hidden_size,
            intermediate_size=vision.intermediate_size,
            num_hidden_layers=vision.num_hidden_layers,
            num_attention_heads=vision.num_attention_heads,
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            hidden_act="gelu",
        ),
        text_config=ours.text_config,
        image_token_index=ours.image_token_id,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config).bfloat16()
    answer_in_text(model, tokenizer)
    model.save_pretrained(folder)
    _name_as_before(folder / "model.safetensors")
    square = {"height": vision.image_size, "width": vision.image_size}
    LlavaProcessor(
        image_processor=CLIPImageProcessor(size=square, crop_size=square, do_center_crop=False),
        tokenizer=tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=1,
        image_token=tokenizer.convert_ids_to_tokens(ours.image_token_id),
        chat_template=template,
    ).save_pretrained(folder)
    return folder


def _name_as_before(file: Path) -> None:
    """CLIP's tensors under the names of published LLaVA checkpoints, which vLLM reads; transformers 5 drops a part."""
    tensors = load_file(file)
    tower = "vision_tower."
    save_file(
        {f"{tower}vision_model.{n[len(tower) :]}" if n.startswith(tower) else n: t for n, t in tensors.items()},
        file,
        metadata={"format": "pt"},
    )


def main() -> None:
    """Make one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=["demo", *sorted(SHAPES)])
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    print(llava_checkpoint(args.shape, args.folder))


if __name__ == "__main__":
    run("llava", main)
