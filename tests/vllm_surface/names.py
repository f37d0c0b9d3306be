"""Does each module and name of vLLM that our code imports exist in a release? By its syntax trees, nothing is imported.

mypy cannot say so: it takes any name of a module that makes names when they are asked for (`__getattr__`), and a module
that is gone from the installed vLLM.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.vllm_surface.switches import walk

_DOTTED = re.compile(r"vllm(\.[A-Za-z_]\w*)+")
# Strings that look like modules and are none.
ENTRY_POINTS = {"vllm.general_plugins", "vllm.platform_plugins"}


def missing_names(files: dict[str, ast.Module], root: Path, release: str) -> list[str]:
    """What is imported or named by a string, and is not there.

    Args:
        files: our sources, by their paths.
        root: holds vllm/ of the release.
    """
    found = []
    for file, tree in files.items():
        for line, module, name in sorted(_uses(tree, release), key=lambda use: use[0]):
            if not exists(root, module, name):
                found.append(f"{file}:{line}: vLLM {release} has no {module}{f'.{name}' if name else ''}")
    return found


def _uses(tree: ast.Module, release: str) -> Iterator[tuple[int, str, str | None]]:
    for node in walk(tree, release):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm" and not node.level:
            yield from ((node.lineno, node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, None) for alias in node.names if alias.name.split(".")[0] == "vllm")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _DOTTED.fullmatch(node.value):
            module, _, name = node.value.rpartition(".")
            if node.value not in ENTRY_POINTS:
                yield node.lineno, module, name


def exists(root: Path, module: str, name: str | None) -> bool:
    """Whether a module, or a name in it, is there."""
    file = _file(root, module)
    if name is None or file is None:
        return file is not None or (root / Path(*module.split("."))).is_dir()
    return _file(root, f"{module}.{name}") is not None or name in names_of(root, module)


def _file(root: Path, module: str) -> Path | None:
    path = root / Path(*module.split("."))
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


@cache
def names_of(root: Path, module: str) -> frozenset[str]:
    """Names that a module has: its own, those it imports (also by `*`), and those it makes when they are asked for."""
    file = _file(root, module)
    if file is None:
        return frozenset()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found: set[str] = set()
    lazy = False
    for node in _own_statements(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
            lazy = lazy or node.name == "__getattr__"
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if alias.name == "*":
                    found |= names_of(root, _absolute(module, file, node))
                else:
                    found.add(alias.asname or alias.name)
        elif isinstance(node, ast.Import):
            found |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    if lazy:
        # The table of such a module, or the comparison in its __getattr__: names stand there as strings.
        strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        found |= {value for value in strings if isinstance(value, str) and value.isidentifier()}
    return frozenset(found)


def _own_statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Of a module, also below `if` and `try`; not of its functions and classes."""
    for node in ast.iter_child_nodes(tree):
        yield node
        if isinstance(node, ast.If | ast.Try | ast.ExceptHandler | ast.With):
            yield from _own_statements(node)


def _absolute(module: str, file: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    package = package[: len(package) - node.level + 1]
    return ".".join([*package, *([node.module] if node.module else [])])
