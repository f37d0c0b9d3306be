"""What is installed is what is in the folders."""

import re
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


def test_what_is_said_about_installing_works_in_a_checkout():
    """The project is on no package index: pip takes the folder, with an extra that there is."""
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    folders = (REPOSITORY / top for top in ("plugin", "train", "serving", "quantize", "benchmarks"))
    files = [file for folder in folders for end in ("*.py", "*.md") for file in folder.rglob(end)]
    texts = {file: file.read_text(encoding="utf-8") for file in [*files, REPOSITORY / "README.md"]}
    by_name = [str(file) for file, text in texts.items() if "pip install 'qwen-vqa" in text]
    assert by_name == []
    named = [
        name
        for text in texts.values()
        for name in re.findall(r"how_to_install\('(\w+)'\)|pip install -e '\.\[(\w+)\]'", text)
    ]
    assert {one or other for one, other in named} <= set(extras)
    assert len(named) > 5
