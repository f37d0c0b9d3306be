"""When `serve` has Qwen's tool calls parsed by itself."""

import json
import shutil
from pathlib import Path

import pytest

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.admission.admission import take_admission
from qwen_vqa.serving.serve import _parse
from qwen_vqa.serving.startup.tool_calls import complete_tool_calls
from tests.tiny import DEMO


def parser_of(folder: Path, *flags: str) -> tuple[bool, str | None, str]:
    args = _parse([str(folder), *flags])
    complete_tool_calls(args, folder)
    return args.enable_auto_tool_choice, args.tool_call_parser, args.tool_strict_level


def test_qwens_template_and_tokenizer_have_it(tiny_checkpoint: Path):
    for folder in (DEMO, tiny_checkpoint):
        assert parser_of(folder) == (True, "hermes", "parameter")


def test_what_the_user_chose_stays(tmp_path: Path):
    flags = ["--enable-auto-tool-choice", "--tool-call-parser", "pythonic", "--tool-strict-level", "auto"]
    assert parser_of(DEMO, *flags) == (True, "pythonic", "auto")
    template = tmp_path / "own.jinja"
    template.write_text("{{ messages }}")
    assert parser_of(DEMO, "--chat-template", str(template)) == (False, None, "parameter")


@pytest.mark.parametrize("lacking", ["template", "tokenizer"])
def test_without_qwens_template_or_tokens_there_is_none(tiny_checkpoint: Path, tmp_path: Path, lacking: str):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "other")
    if lacking == "template":
        (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    else:
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if "tool_call" not in t["content"]]
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert parser_of(folder)[:2] == (False, None)


def test_a_store_of_responses_that_belongs_to_nobody_is_refused(monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_RESPONSES_API_STORE", "1")
    with pytest.raises(UserError, match="Unset it; clients send the whole conversation"):
        take_admission(_parse([]))
