"""Does a release still call what it finds by name on our classes, and in the way that ours can be called?

That a method of ours can stand in for its base class's is signatures.py's. Here are those that vLLM may stop calling
without an error anywhere: what nobody calls does nothing.
"""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

# Our file, class and method, and the folders of vLLM that call it.
Hook = tuple[str, str, str, str]
HOOKS: list[Hook] = [
    (
        "plugin/vllm_model/model.py",
        "QwenVqaForConditionalGeneration",
        "process_weights_after_loading",
        "model_executor",
    ),
    ("plugin/vllm_model/model.py", "QwenVqaForConditionalGeneration", "get_placeholder_str", "renderers"),
    ("plugin/vllm_model/model.py", "QwenVqaForConditionalGeneration", "embed_multimodal", "v1"),
    ("plugin/vllm_model/model.py", "QwenVqaForConditionalGeneration", "get_mm_mapping", "lora"),
    ("plugin/vllm_model/model.py", "QwenVqaForConditionalGeneration", "get_mm_lora_token_counts", "v1"),
    ("plugin/vllm_model/model.py", "QwenVqaForConditionalGeneration", "compute_logits", "v1"),
    ("plugin/vllm_model/processing.py", "QwenVqaMultiModalProcessor", "apply", "multimodal|renderers"),
    ("plugin/vllm_model/processing.py", "QwenVqaMultiModalProcessor", "_get_mm_fields_config", "multimodal"),
    ("plugin/vllm_model/processing.py", "QwenVqaMultiModalProcessor", "_get_prompt_updates", "multimodal"),
    ("plugin/vllm_model/processing.py", "QwenVqaProcessingInfo", "get_hf_processor", "multimodal"),
    ("plugin/vllm_model/processing.py", "QwenVqaProcessingInfo", "get_supported_mm_limits", "multimodal"),
    ("plugin/vllm_model/processing.py", "QwenVqaProcessingInfo", "get_mm_max_tokens_per_item", "multimodal"),
    ("plugin/vllm_model/processing.py", "QwenVqaDummyInputsBuilder", "get_dummy_text", "multimodal"),
    ("plugin/vllm_model/processing.py", "QwenVqaDummyInputsBuilder", "get_dummy_mm_data", "multimodal"),
    ("plugin/cpu/embedding.py", "InputEmbedding", "embedding", "model_executor"),
    ("plugin/cpu/embedding.py", "PackedOutputLayer", "apply", "model_executor"),
    ("plugin/cpu/linear.py", "MixedLinear", "apply", "model_executor"),
    ("serving/requests/media_connector.py", "QwenVqaMediaConnector", "fetch_image_async", "renderers"),
    ("serving/requests/media_connector.py", "QwenVqaMediaConnector", "fetch_image", "renderers"),
    ("serving/requests/token_count.py", "TokenCountRequest", "build_tok_params", "renderers"),
]


def uncalled(files: dict[str, ast.Module], root: Path, release: str, hooks: Iterable[Hook]) -> list[str]:
    """Methods of ours that no call in the release fits."""
    found = []
    for file, owner, method, folders in hooks:
        ours = _method(files.get(file), owner, method)
        if ours is None:
            continue  # not in this commit
        calls = [call for folder in folders.split("|") for call in _calls(root / "vllm" / folder, method)]
        if not any(fits(ours, call) for call in calls):
            ways = {ast.unparse(call)[:120] for call in calls}
            said = f"calls it otherwise: {'; '.join(sorted(ways)[:3])}" if ways else "no longer calls it"
            found.append(f"{file}:{ours.lineno}: {owner}.{method}: vLLM {release} {said}")
    return found


def _method(tree: ast.Module | None, owner: str, method: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.ClassDef) and node.name == owner:
            for part in node.body:
                if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) and part.name == method:
                    return part
    return None


def _calls(folder: Path, method: str) -> Iterator[ast.Call]:
    for file in sorted(folder.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if f".{method}" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == method:
                yield node


def fits(function: ast.FunctionDef | ast.AsyncFunctionDef, call: ast.Call) -> bool:
    """Whether a call on an object binds to a method; `*` and `**` in the call bind to anything."""
    arguments = function.args
    plain = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    required = set(plain[: len(plain) - len(arguments.defaults)])
    required |= {a.arg for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is None}
    if not any(getattr(decorator, "id", "") == "staticmethod" for decorator in function.decorator_list):
        required.discard(plain[0])
        plain = plain[1:]
    spread = any(isinstance(argument, ast.Starred) for argument in call.args)
    named = {keyword.arg for keyword in call.keywords if keyword.arg}
    spread_names = any(keyword.arg is None for keyword in call.keywords)
    if not spread and len(call.args) > len(plain) and arguments.vararg is None:
        return False
    by_position = set(plain[: len(call.args)])
    known = {*plain, *(argument.arg for argument in arguments.kwonlyargs)}
    if named & by_position or (named - known and arguments.kwarg is None):
        return False
    return spread or spread_names or required <= by_position | named
