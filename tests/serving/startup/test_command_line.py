"""Help, and what the flags alone show to be wrong, are answered without PyTorch."""

import subprocess
import sys

import pytest

from qwen_vqa.serving.cli import JOBS
from qwen_vqa.train.data.formats.registry import ADAPTERS
from qwen_vqa.train.data.source import DATA_SETS
from tests.tiny import DEMO

HEAVY = ("torch", "transformers", "vllm", "datasets")
COMMAND = f"""
import sys
from qwen_vqa.serving.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as end:
    status = end.code
print("imported:", *(name for name in {HEAVY} if name in sys.modules))
sys.exit(status)
"""


def run(*words: str) -> tuple[int, str, str]:
    """The command's status, what it imported of HEAVY, and what it printed."""
    done = subprocess.run([sys.executable, "-c", COMMAND, *words], capture_output=True, text=True, check=False)
    said, _, imported = done.stdout.rpartition("imported:")
    return done.returncode, imported.strip(), said + done.stderr


@pytest.mark.parametrize("job", [*JOBS, "quantize report"])
def test_help_imports_nothing_heavy(job: str):
    status, imported, said = run(*job.split(), "--help")
    assert (status, imported) == (0, "")
    assert f"qwen-vqa {job}" in said


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("train base", "--output"),
        ("train base -o run", "--data"),
        ("train base -o run --data local=x.jsonl --rank -1", "rank -1"),
        ("train base -o run --data local=x.jsonl,weight=0", "weight=0"),
        ("train /no/such/base -o run --data local=x.jsonl", "/no/such/base"),
        ("assemble --vision-encoder a --language-model b --adapter-name c -o d", "--adapter-name"),
        ("assemble --vision-encoder a --language-model b --fit c -o d", "--fit"),
        ("verify /no/such/model", "/no/such/model"),
        ("evaluate --data local=x.jsonl -o out", "--url"),
        ("evaluate /no/such/model --data local=x.jsonl -o out", "/no/such/model"),
        ("evaluate --url u --data x,y -o out", "--data x,y"),
        ("evaluate --url u --data x.jsonl -o out --max-tokens 0", "--max-tokens is 0"),
        (f"train {DEMO} -o run --data local=/no/such/x.jsonl", "/no/such/x.jsonl"),
        (f"train {DEMO} -o run --data {__file__} --eval-data vizwiz=/no/such/val.json", "/no/such/val.json"),
        (f"evaluate {DEMO} --data local=/no/such/x.jsonl -o out", "/no/such/x.jsonl"),
        ("quantize /no/such/model --scheme int8 -o out", "/no/such/model"),
        ("quantize --scheme int3 -o out", "int3"),
        ("quantize report only-one", "the following arguments are required: B"),
        ("demo-train --out out --steps many", "many"),
        ("load --requests many", "many"),
        ("evaluate --url localhost:8000/v1 --data local=x.jsonl -o out", "http://localhost:8000/v1"),
        ("verify my-model --url http://localhost:99999/v1", "99999"),
        ("load --url localhost:8000", "http://localhost:8000"),
        ("ask what? why?", "'why?'"),
        ("serve /no/such/model", "/no/such/model"),
    ],
)
def test_what_the_flags_show_to_be_wrong_is_said_before_anything_heavy_is_imported(words: str, named: str):
    status, imported, said = run(*words.split())
    assert (status, imported) == (2, "")
    assert named in said


def test_help_names_the_data_sets_that_there_are():
    assert tuple(ADAPTERS) == DATA_SETS
