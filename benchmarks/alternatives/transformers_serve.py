"""`transformers serve` on a checkpoint of ours: its command line, with our model made known to it.

python -m qwen_vqa.benchmarks.alternatives.transformers_serve runs/shapes/0.5b --port 8010 --dtype float32

It finds models' classes in tables by their names, so ours is entered there, as in a model that transformers ships. It
lists only what lies in the hub's cache, so it is given a cache that holds a link to the checkpoint.
"""

import os
import sys
import tempfile
from pathlib import Path

REVISION = "0" * 40


def link_into(cache: Path, checkpoint: Path) -> str:
    """Lay the folder out as huggingface_hub's cache, with links to the checkpoint's files; returns the model's name."""
    repository = cache / f"models--qwen-vqa--{checkpoint.name}"
    snapshot = repository / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    for file in checkpoint.iterdir():
        if file.is_file():
            (snapshot / file.name).symlink_to(file.absolute())
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)
    return f"qwen-vqa/{checkpoint.name}"


def register() -> None:
    """Enter our model where `transformers serve` looks for classes and for what a model can take."""
    from transformers.cli.serving import model_manager
    from transformers.models.auto import modeling_auto

    from qwen_vqa.plugin.config import QwenVqaConfig
    from qwen_vqa.train.model.reference_model import QwenVqaForConditionalGeneration, register_model

    register_model()
    name = QwenVqaForConditionalGeneration.__name__
    setattr(model_manager.transformers, name, QwenVqaForConditionalGeneration)
    modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[QwenVqaConfig.model_type] = name


def main() -> None:
    """As `transformers serve CHECKPOINT [options]`."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        print(__doc__)
        sys.exit(0 if "--help" in sys.argv[1:] else 2)
    with tempfile.TemporaryDirectory() as cache:
        os.environ |= {"HF_HUB_CACHE": cache, "HF_HUB_OFFLINE": "1"}  # read when transformers is imported
        name = link_into(Path(cache), Path(sys.argv[1]))
        register()
        from transformers.cli.transformers import app

        app(["serve", name, *sys.argv[2:]])


if __name__ == "__main__":
    main()
