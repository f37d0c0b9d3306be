"""Tool calls: which of vLLM's parsers reads them out of an answer."""

import json
from argparse import Namespace
from pathlib import Path

# Qwen's format, in the name that vLLM has for it: JSON between <tool_call> and </tool_call>.
QWEN_PARSER = "hermes"
# Arguments keep to the tool's schema without "strict": true, too: small models write none or half of them otherwise.
STRICT_LEVEL = "parameter"
TOOL_CALL_TOKENS = {"<tool_call>", "</tool_call>"}


def complete_tool_calls(args: Namespace, folder: Path) -> None:
    """Have Qwen's tool calls parsed, where the checkpoint writes them so and the user chose nothing else."""
    if args.tool_call_parser or args.enable_auto_tool_choice or args.chat_template:
        return
    if writes_qwen_tool_calls(folder):
        args.enable_auto_tool_choice = True
        args.tool_call_parser = QWEN_PARSER


def writes_qwen_tool_calls(folder: Path) -> bool:
    """Whether the chat template tells the model of tools, and the tokenizer has Qwen's tokens for a call."""
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if "tools" not in template or "<tool_call>" not in template:
        return False
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {token["content"] for token in tokenizer.get("added_tokens", ())} >= TOOL_CALL_TOKENS
