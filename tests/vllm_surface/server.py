"""The server's flags and routes: does a release have the flags that `serve` sets, and has each new route a rule?"""

import ast
import re
from pathlib import Path

# Where vLLM declares them, in whichever release.
FLAG_FILES = ("engine/arg_utils.py", "entrypoints/common/cli_args.py", "entrypoints/launchers/cli_args.py")
METHODS = {"get", "post", "put", "patch", "delete", "api_route", "websocket"}
# What argparse makes beside flags, and what `serve` does not set but hands over as it stands.
NOT_FLAGS = {"model_tag"}


def unknown_flags(files: dict[str, ast.Module], root: Path, release: str) -> list[str]:
    """Defaults that `serve` sets, and arguments that it reads, which the release does not have: both do nothing."""
    serving = {file: tree for file, tree in files.items() if file.startswith("serving/")}
    known = NOT_FLAGS | set().union(*map(_declared, serving.values())) | vllm_flags(root)
    found = []
    for file, tree in serving.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "set_defaults":
                names = [keyword.arg for keyword in node.keywords if keyword.arg]
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "args":
                names = [node.attr]
            else:
                continue
            found += [f"{file}:{node.lineno}: vLLM {release} has no flag {name}" for name in names if name not in known]
    return found


def vllm_flags(root: Path) -> set[str]:
    """Names of all arguments of vLLM's server: fields of its dataclasses, and flags that are added one by one."""
    found: set[str] = set()
    for name in FLAG_FILES:
        if (root / "vllm" / name).is_file():
            tree = ast.parse((root / "vllm" / name).read_text(encoding="utf-8"))
            found |= _declared(tree)
            for owner in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
                fields = (part.target for part in owner.body if isinstance(part, ast.AnnAssign))
                found |= {target.id for target in fields if isinstance(target, ast.Name)}
    return found


def _declared(tree: ast.Module) -> set[str]:
    """Flags that are added to a parser, and attributes that our own code gives to `args`."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _called(node) in ("add_argument", "add"):  # by its name, or by ours
            strings = [part.value for part in node.args if isinstance(part, ast.Constant)]
            found |= {str(value).lstrip("-").replace("-", "_") for value in strings}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_subparsers":
            found |= {str(part.value.value) for part in node.keywords if isinstance(part.value, ast.Constant)}
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return found


def _called(node: ast.Call) -> str:
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def unruled_routes(rules: Path, root: Path, release: str, before: Path) -> list[str]:
    """Routes that the release has, an older one has not, and serving/admission/route_rules.py does not name.

    They are closed, and nobody decided so. (Those of the installed release are asserted by test_route_rules.py.)
    """
    ruled = set(re.findall(r"/[\w./{}-]+", rules.read_text(encoding="utf-8")))
    new = sorted(routes(root) - routes(before) - ruled)
    return [
        f"serving/admission/route_rules.py: vLLM {release} has a new route {path}, which has no rule" for path in new
    ]


def routes(root: Path) -> set[str]:
    """Paths of all routes of vLLM's servers."""
    found: set[str] = set()
    for file in sorted((root / "vllm" / "entrypoints").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in METHODS and node.args:
                path = node.args[0]
                if isinstance(path, ast.Constant) and isinstance(path.value, str) and path.value.startswith("/"):
                    found.add(path.value)
    return found
