"""Where samples come from: the user's file, or, for a model of the demo's kind, the demo's renderer."""

from importlib.resources import files
from pathlib import Path

from qwen_vqa.plugin.processor import QwenVqaProcessor
from qwen_vqa.quantize.demo_samples import DemoSamples
from qwen_vqa.quantize.samples import UserSamples


def samples_of(
    source: Path, data: str | None, seed: int, processor: QwenVqaProcessor
) -> UserSamples | DemoSamples | None:
    """The user's data, as the checkpoint's processor sees it; for the demo its own; None where there is neither."""
    if data is not None:
        return UserSamples(data, seed, processor)
    return DemoSamples(seed) if is_demo(source) else None


def demo_checkpoint() -> Path:
    """The bundled demo's folder: data that is installed beside the server's code."""
    return Path(str(files("qwen_vqa.serving") / "demo_checkpoint"))


def is_demo(folder: Path) -> bool:
    """Whether a checkpoint has the demo's words and its picture size, so that the demo's questions suit it."""
    demo = demo_checkpoint()
    names = ("tokenizer.json", "processor_config.json")
    return all((folder / n).is_file() and (folder / n).read_bytes() == (demo / n).read_bytes() for n in names)
