"""What is installed is what is in the folders."""

from pathlib import Path

import tomllib

REPOSITORY = Path(__file__).parents[1]


def test_every_folder_with_modules_is_a_package_that_is_installed():
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    tops = ("plugin", "train", "serving", "quantize", "benchmarks")
    folders = {file.parent.relative_to(REPOSITORY) for top in tops for file in (REPOSITORY / top).rglob("*.py")}
    packages = {"qwen_vqa." + ".".join(folder.parts): str(folder) for folder in folders}
    assert declared["package-dir"] == packages
    assert sorted(declared["packages"]) == sorted(packages)
