"""JSON answers that end. Where a grammar leaves whitespace free, small models write it up to the limit of tokens."""

import json
from argparse import Namespace
from dataclasses import replace
from typing import Any

from vllm.tool_parsers.abstract_tool_parser import ToolParser, ToolParserManager

# Between two tokens of a tool call's JSON. xgrammar has no 0 here; Qwen's own calls have a space after colon and comma.
MOST_WHITESPACE = 1


def bound_whitespace(args: Namespace) -> None:
    """No whitespace in guided JSON, and at most one character between two tokens of a tool call's arguments.

    Where the user named a backend for guided answers, what goes with it is his choice, too. Ours is xgrammar: vLLM's
    "auto" is that of the first request that asks for one, and takes no `disable_any_whitespace`.
    """
    config = args.structured_outputs_config
    if config.backend != "auto":
        return
    args.structured_outputs_config = replace(config, backend="xgrammar", disable_any_whitespace=True)
    if args.tool_call_parser:
        parser = ToolParserManager.get_tool_parser(args.tool_call_parser)
        ToolParserManager.register_module(args.tool_call_parser, module=_bounded(parser))


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
