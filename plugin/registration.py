"""Makes Transformers' Auto classes and vLLM's model registry know the model."""

from importlib.util import find_spec

from transformers import AutoConfig, AutoImageProcessor, AutoProcessor

from qwen_vqa.plugin.config import ARCHITECTURE, MODEL_TYPE, QwenVqaConfig
from qwen_vqa.plugin.processor import QwenVqaProcessor
from qwen_vqa.plugin.views.image_processor import QwenVqaImageProcessor

VLLM_MODEL = "qwen_vqa.plugin.vllm_model.model:QwenVqaForConditionalGeneration"


def register_all() -> None:
    """Register for Transformers, and for vLLM where it is installed. Calling it again does nothing new."""
    register_for_transformers()
    if find_spec("vllm") is not None:
        from vllm import ModelRegistry

        if ARCHITECTURE not in ModelRegistry.get_supported_archs():
            ModelRegistry.register_model(ARCHITECTURE, VLLM_MODEL)


def register_for_transformers() -> None:
    """AutoConfig, AutoImageProcessor and AutoProcessor; the model itself is `qwen_vqa.train`'s to register."""
    AutoConfig.register(MODEL_TYPE, QwenVqaConfig, exist_ok=True)
    AutoImageProcessor.register(
        QwenVqaConfig,
        # One implementation whatever the backend: OpenCV, so torchvision is never needed.
        image_processor_classes={"pil": QwenVqaImageProcessor, "torchvision": QwenVqaImageProcessor},
        exist_ok=True,
    )
    AutoProcessor.register(QwenVqaConfig, QwenVqaProcessor, exist_ok=True)
