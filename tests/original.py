"""The original project's arithmetic, in our words, on small models in the hub's layouts that are made here.

Source: train.py and app.py of https://github.com/ishreyanshkumar/VQA. Both join the connected features of all positions
of a ViT and the embeddings of the whole prompt, and let transformers generate. Nothing of qwen_vqa is used for it.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    Qwen2Config,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from tests.tiny import DEMO

SIZE, VISION, TEXT = 64, 64, 128
# Of the weights: answers depend on every part, and float32 differs from float64 by 3e-6 in the log-probabilities. (With
# 0.12 it is 8e-6, which leaves a bound of 1e-5 no room.)
DEVIATION = 0.08
TRAIN_SYSTEM = "You are a helpful visual assistant."
APP_SYSTEM = "You are a helpful visual assistant. You can see the image provided by the user."


def make_artefacts(folder: Path, dtype: torch.dtype) -> Path:
    """vit/ and language_model/ as the hub has them, and what train.py leaves: final_connector.pth, final_lora_model/.

    Only the language model has `dtype`; its generation config is Qwen2.5-3B-Instruct's.
    """
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    language_model = AutoModelForCausalLM.from_config(
        Qwen2Config(
            hidden_size=TEXT,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=192,
            vocab_size=len(tokenizer),
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    _randomise(language_model)
    make_vision_side(folder, TEXT)
    language_model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.7,
        top_p=0.8,
        top_k=20,
        repetition_penalty=1.05,
        eos_token_id=tokenizer.eos_token_id,
    )
    language_model.to(dtype).save_pretrained(folder / "language_model")
    tokenizer.save_pretrained(folder / "language_model")
    lora = LoraConfig(
        r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "k_proj", "o_proj"], task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(language_model.float(), lora)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.15)
    adapted.save_pretrained(str(folder / "final_lora_model"))
    return folder


def make_vision_side(folder: Path, text_width: int) -> None:
    """vit/, with its preprocessor file, and final_connector.pth."""
    vit = ViTModel(
        ViTConfig(
            hidden_size=VISION,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=96,
            image_size=SIZE,
            patch_size=32,
        )
    )
    _randomise(vit)
    vit.save_pretrained(folder / "vit")
    ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(folder / "vit")
    connector = _connector(VISION, text_width)
    _randomise(connector)
    torch.save(connector.state_dict(), folder / "final_connector.pth")


def _connector(vision: int, text: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(vision, text), nn.GELU(), nn.Linear(text, text))


def _randomise(module: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, 0.5 if "position" in name else DEVIATION)


def squashed(image: Image.Image) -> np.ndarray:
    """A picture as train.py resizes it: uint8 [size, size, 3]."""
    return cv2.resize(np.array(image.convert("RGB")), (SIZE, SIZE))


def padded(image: Image.Image) -> np.ndarray:
    """A picture as app.py resizes it: uint8 [size, size, 3]."""
    pixels = np.array(image.convert("RGB"))
    height, width = pixels.shape[:2]
    scale = SIZE / max(height, width)
    new_width, new_height = int(width * scale), int(height * scale)
    canvas = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
    canvas[:new_height, :new_width] = cv2.resize(pixels, (new_width, new_height))
    return canvas


@dataclass(frozen=True)
class Answer:
    """Greedy tokens, the log-probability of each, and the text that app.py would show."""

    token_ids: list[int]
    logprobs: list[float]
    text: str


class OriginalModel:
    """The original's model from its files, with its adapter unless told otherwise.

    Args:
        dtype: of the language model; ViT and connector are in float32.
    """

    def __init__(self, artefacts: Path, dtype: torch.dtype, adapter: bool = True) -> None:
        self.vit = ViTModel.from_pretrained(artefacts / "vit").eval()
        self.processor = ViTImageProcessorPil.from_pretrained(artefacts / "vit")
        self.tokenizer = AutoTokenizer.from_pretrained(artefacts / "language_model")
        self.llm = AutoModelForCausalLM.from_pretrained(artefacts / "language_model", dtype=dtype).eval()
        if adapter:
            self.llm = PeftModel.from_pretrained(self.llm, str(artefacts / "final_lora_model")).eval()
        weights = torch.load(artefacts / "final_connector.pth")
        self.connector = _connector(weights["0.weight"].shape[1], weights["2.weight"].shape[0])
        self.connector.load_state_dict(weights)

    def prompt(self, history: list[dict], system: str) -> str:
        """The text of a conversation, to where the answer begins."""
        text = f"<|im_start|>system\n{system}<|im_end|>\n"
        for message in history:
            text += f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n"
        return text + "<|im_start|>assistant\n"

    def pixels(self, square: np.ndarray) -> torch.Tensor:
        """[1, 3, size, size] of a picture that was made square."""
        return self.processor(Image.fromarray(square), return_tensors="pt").pixel_values

    @torch.inference_mode()
    def answer(self, square: np.ndarray | None, history: list[dict], system: str, max_tokens: int) -> Answer:
        """Decoded greedily, without a penalty; about a picture that was made square, or about none."""
        ids = self.tokenizer(self.prompt(history, system), return_tensors="pt").input_ids
        embeddings = self.llm.get_input_embeddings()(ids)
        if square is not None:
            features = self.vit(self.pixels(square)).last_hidden_state
            image = self.connector(features.to(torch.float32))
            embeddings = torch.cat((image.to(embeddings.dtype), embeddings), dim=1)
        made = self.llm.generate(
            inputs_embeds=embeddings,
            attention_mask=torch.ones(embeddings.shape[:2]),
            max_new_tokens=max_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            do_sample=False,
            repetition_penalty=1.0,  # transformers would take the language model's own 1.05
            output_logits=True,
            return_dict_in_generate=True,
        )
        tokens = made.sequences[0].tolist()
        logprobs = [
            step[0].float().log_softmax(-1)[token].item() for step, token in zip(made.logits, tokens, strict=True)
        ]
        return Answer(tokens, logprobs, self.tokenizer.decode(tokens, skip_special_tokens=True).strip())
