"""Which of a vision encoder's numbers are an image's features: `vision_features` of config.json."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FeatureChoice:
    """What the connector is given.

    Attributes:
        layers: of which layers the output is taken, as Transformers counts hidden states: -1 is after the last layer,
            -2 after the one before, 0 before the first. Several are joined along the width.
        norm: whether the encoder's last norm is applied to them.
        class_token: whether the features of the class token, and of register tokens, are kept.
    """

    layers: tuple[int, ...] = (-1,)
    norm: bool = True
    class_token: bool = True

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "FeatureChoice":
        """From config.json.

        Raises:
            ValueError: an unknown field, or a value of another type.
        """
        if unknown := set(fields) - set(cls.__dataclass_fields__):
            raise ValueError(f"vision_features has unknown fields {sorted(unknown)}; remove them from config.json.")
        layers = fields.get("layers", [-1])
        if not isinstance(layers, list | tuple) or not layers or not all(type(layer) is int for layer in layers):
            raise ValueError(f"vision_features.layers is {layers!r}; it must be a list of whole numbers, such as [-2].")
        for name in ("norm", "class_token"):
            if type(fields.get(name, True)) is not bool:
                raise ValueError(f"vision_features.{name} is {fields[name]!r}; it must be true or false.")
        return cls(tuple(layers), fields.get("norm", True), fields.get("class_token", True))

    def as_fields(self) -> dict[str, Any]:
        """For config.json."""
        return {"layers": list(self.layers), "norm": self.norm, "class_token": self.class_token}

    def depths(self, num_layers: int) -> list[int]:
        """After how many layers each is taken.

        Raises:
            ValueError: the encoder has fewer layers.
        """
        found = [layer if layer >= 0 else num_layers + 1 + layer for layer in self.layers]
        for layer, depth in zip(self.layers, found, strict=True):
            if not 0 <= depth <= num_layers:
                raise ValueError(f"vision_features.layers has {layer}, and the encoder has {num_layers} layers.")
        return found


def describe(features: FeatureChoice) -> str:
    """In a few words, for people."""
    layers = ", ".join(map(str, features.layers))
    norm = "with" if features.norm else "without"
    return f"layer {layers} {norm} the last norm, class token {'kept' if features.class_token else 'dropped'}"
