"""What only a CPU needs is not imported with the model."""

import pytest

pytest.importorskip("vllm")

from tests.vllm_copy import in_a_copy


def import_the_model() -> None:
    import sys

    import qwen_vqa.plugin.vllm_model.model  # noqa: F401

    print([name for name in sys.modules if name.startswith("qwen_vqa.plugin.cpu")])


def test_importing_the_model_imports_nothing_that_only_a_cpu_needs() -> None:
    run = in_a_copy(import_the_model)
    assert run.stdout.splitlines()[-1] == "[]", run.stderr
