"""JSON answers that end. Where a grammar leaves whitespace free, small models write it up to the limit of tokens."""

import json
import logging
from argparse import Namespace
from dataclasses import replace
from typing import Any

from qwen_vqa.serving.vllm_server_api import ToolParser, ToolParserManager

# Between two tokens of a tool call's JSON. xgrammar has no 0 here; Qwen's own calls have a space after colon and comma.
MOST_WHITESPACE = 1


def guide_json(args: Namespace) -> None:
    """No whitespace in guided JSON, at most one character between two tokens of a tool call's; one line for a cut call.

    Where the user named a backend for guided answers, what goes with it is his choice, too. Ours is xgrammar: vLLM's
    "auto" is that of the first request that asks for one, and takes no `disable_any_whitespace`.
    """
    config, name = args.structured_outputs_config, args.tool_call_parser
    parser = ToolParserManager.get_tool_parser(name) if name else None
    if parser is not None:
        for part in parser.__mro__:
            logging.getLogger(part.__module__).addFilter(_one_line)
    if config.backend != "auto":
        return
    args.structured_outputs_config = replace(config, backend="xgrammar", disable_any_whitespace=True)
    if parser is not None:
        ToolParserManager.register_module(name, module=_bounded(parser))


def _one_line(record: logging.LogRecord) -> bool:
    """In place of a traceback: an answer may end anywhere, where `max_tokens` says so."""
    if record.exc_info and record.exc_info[1]:
        fault = record.exc_info[1]
        record.msg, record.args = "a tool call that was cut or is not JSON is answered as text (%s)", (fault,)
        record.exc_info = None
    return True


def _bounded(parser: type[ToolParser]) -> type[ToolParser]:
    """The parser, for whose calls vLLM has xgrammar's structural tags, with these bounded."""

    class Bounded(parser):  # type: ignore[misc, valid-type] # whichever the user named
        def adjust_request(self, request: Any) -> Any:
            request = super().adjust_request(request)
            guide = request.structured_outputs
            if guide is not None and guide.structural_tag is not None:
                guide.structural_tag = json.dumps(_with_bounds(json.loads(guide.structural_tag)))
            return request

    return Bounded


def _with_bounds(tag: Any) -> Any:
    if isinstance(tag, list):
        return [_with_bounds(part) for part in tag]
    if not isinstance(tag, dict):
        return tag
    if tag.get("type") == "json_schema":  # what is in it is a schema, not a tag
        return {**tag, "max_whitespace_cnt": tag.get("max_whitespace_cnt") or MOST_WHITESPACE}
    return {name: _with_bounds(value) for name, value in tag.items()}
