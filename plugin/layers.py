"""The layers that encoders and connectors are built from: PyTorch's for training, vLLM's parallel ones for serving."""

from abc import ABC, abstractmethod

from torch import nn


class Layers(ABC):
    """Makes a component's layers. `name` is a layer's place in the whole model, by which vLLM knows it.

    What a component has itself (norms, embeddings, the order of things) is plain PyTorch, the same on both sides.
    """

    @abstractmethod
    def column(self, inputs: int, outputs: int, name: str, bias: bool = True) -> nn.Module:
        """A Linear [..., inputs] to [..., outputs], split between ranks along its outputs; a `row` comes after it."""

    @abstractmethod
    def row(self, inputs: int, outputs: int, name: str, bias: bool = True) -> nn.Module:
        """A Linear [..., inputs] to [..., outputs], split between ranks along its inputs."""

    @abstractmethod
    def replicated(self, inputs: int, outputs: int, name: str, bias: bool = True) -> nn.Module:
        """A Linear [..., inputs] to [..., outputs], whole on each rank."""

    @abstractmethod
    def attention(self, width: int, heads: int, name: str, qkv_bias: bool = True) -> nn.Module:
        """Bidirectional multi-head self-attention [N, T, width] to the same, split between ranks by heads.

        A checkpoint has its weights as `q_proj`, `k_proj`, `v_proj` and `out_proj`.
        """

    @abstractmethod
    def convolution(self, channels: int, width: int, patch: int, bias: bool = True) -> nn.Module:
        """Patches of `patch` pixels a side, [N, channels, H, W] to [N, width, H / patch, W / patch]."""

    @abstractmethod
    def activation(self, name: str) -> nn.Module:
        """By the name that Transformers' configs have for it."""
