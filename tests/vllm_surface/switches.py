"""`SINCE_0_33` in our code is true with vLLM 0.33 and newer: by it the checks know which branch a release takes."""

import ast
import re
from collections.abc import Iterator

_SWITCH = re.compile(r"SINCE_(\d+)_(\d+)")


def switch_value(name: str, release: str) -> bool | None:
    """What a name of a switch is for a release; None: it is no switch."""
    found = _SWITCH.fullmatch(name)
    if found is None:
        return None
    return tuple(map(int, release.split(".")[:2])) >= (int(found[1]), int(found[2]))


def switches(tree: ast.AST) -> set[str]:
    """Names of switches in a file."""
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and _SWITCH.fullmatch(node.id)}


def walk(tree: ast.AST, release: str) -> Iterator[ast.AST]:
    """As `ast.walk`, without the branches that the release does not take."""
    queue = [tree]
    while queue:
        node = queue.pop()
        yield node
        children: list[ast.AST] = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name):
            value = switch_value(node.test.id, release)
            if value is not None:
                children = [*node.body] if value else [*node.orelse]
        queue += children
