"""The type checker sees through the modules: what one imports from another has its type."""

import subprocess
import sys
from pathlib import Path

from qwen_vqa.plugin.errors import INTERRUPTED
from tests.tiny import REPOSITORY

ACROSS = """
import qwen_vqa.plugin.errors
import qwen_vqa.plugin.vision.tower
import qwen_vqa.train.model.reference_checkpoint
reveal_type(qwen_vqa.plugin.errors.INTERRUPTED)
reveal_type(qwen_vqa.plugin.vision.tower.square_sizes)
reveal_type(qwen_vqa.train.model.reference_checkpoint.load_processor)
"""


def test_an_import_from_another_module_has_its_type(tmp_path: Path):
    source = tmp_path / "across.py"
    source.write_text(ACROSS)
    command = [sys.executable, "-m", "mypy", "--config-file", str(REPOSITORY / "pyproject.toml"), str(source)]
    said = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False).stdout
    revealed = [line.partition('Revealed type is "')[2] for line in said.splitlines() if "Revealed" in line]
    assert type(INTERRUPTED) is int
    assert revealed[0].startswith(("int", "builtins.int"))
    assert "-> tuple[" in revealed[1] and "int" in revealed[1]
    assert "QwenVqaProcessor" in revealed[2]
    assert not any("Any" in type_ for type_ in revealed), said
