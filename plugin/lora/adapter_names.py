"""What an adapter's tensors are called: by scripts in many ways, by the language model in one."""

import re
from collections.abc import Iterable

OUTPUT_LAYER = "lm_head"
# Where a language model's layers lie in it, up to their number: as Qwen's, Llama's and most others'.
LAYERS = "model.layers."
# Parts beside the language model, whose layers may have the same names as its own.
OTHER_PART = re.compile(
    r"(?:^|\.)(?:vision(?!_?(?:language|llm|lm))\w*|visual|vit|image_\w+|siglip|clip|connector|\w*projector)\."
)
_BESIDE_LAYERS = re.compile(r"(?:^|\.)(?P<name>(?:embed_tokens|lm_head)(?:\..+)?)$")


def language_model_name(tensor_name: str, layers: str = LAYERS) -> str:
    """A tensor's or module's name in any layout that occurs, as the language model alone calls it.

    A script wraps the language model as it likes: `base_model.model.model.layers.0...` (trained alone),
    `base_model.model.llm.model.layers.0...`, `base_model.model.language_model.layers.0...`, a wrapper around a wrapper:
    all become `model.layers.0...`. Names of other parts, such as a vision encoder, stay as they are.

    Args:
        layers: where the language model's layers lie (`layer_prefix`).
    """
    name = tensor_name.removeprefix("base_model.model.")
    if OTHER_PART.search(name):
        return name
    stack = layers.removesuffix(".").rpartition(".")[2]
    if match := re.search(rf"(?:^|\.){re.escape(stack)}\.(?P<rest>\d+\..+)$", name):
        return layers + match["rest"]
    if match := _BESIDE_LAYERS.search(name):
        root = "" if match["name"].startswith(OUTPUT_LAYER) else layers.removesuffix(f"{stack}.")
        return root + match["name"]
    return name.removeprefix("language_model.")


def layer_prefix(names: Iterable[str]) -> str:
    """Where a language model's layers lie, from its modules' names: `model.layers.` or, in GPT-2, `transformer.h.`."""
    for name in names:
        if match := re.match(r"(?P<prefix>(?:[A-Za-z_]\w*\.)+)0\.", name):
            return match["prefix"]
    return LAYERS
