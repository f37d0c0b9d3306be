"""A device beside the CPU, for machines without a GPU: `with other_device() as device`.

Its tensors hold ordinary CPU tensors, on which everything is computed. As on a GPU, an operation whose tensors are not
all on one device raises; only numbers (tensors without dimensions) may be on the CPU. So what makes a tensor without
saying where, and then uses it beside a model that was moved, fails here as it would fail there.

A device stays registered to its process's end, and changes what others compute there: use it in a copy of the process
(`tests.vllm_copy.passes_in_a_copy`).

PyTorch's backend in Python (PrivateUse1, `torch/utils/backend_registration.py`, marked experimental) is what lets a
device be registered without C++; seen to work with torch 2.13.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_NAME = "elsewhere"
_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
DEVICE = torch.device("privateuseone", 0)  # until it has its name


@contextlib.contextmanager
def other_device() -> Iterator[torch.device]:
    """The device, for the time of a test."""
    global DEVICE
    if DEVICE.type != _NAME:
        _setup_privateuseone_for_python_backend(_NAME)
        DEVICE = torch.device(_NAME, 0)
    with _Factories(), _Numbers():
        yield DEVICE


class _Factories(TorchDispatchMode):
    """What makes tensors there has no tensor among its arguments yet."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(operation, args, kwargs or {})


class _Numbers(TorchFunctionMode):
    """`torch.tensor` and `tolist` do their work where no dispatch mode sees it."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if function is torch.tensor and device is not None and torch.device(device).type == _NAME:
            return torch.tensor(*args, **(kwargs | {"device": "cpu"})).to(device)
        if function is torch.Tensor.tolist:
            return _held(args[0]).tolist()
        return function(*args, **kwargs)


class Elsewhere(torch.Tensor):
    """A tensor on that device; `held` is where its numbers really are."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "Elsewhere":
        with torch.inference_mode(False):  # views of one that is no inference tensor may not be ones
            made = torch.Tensor._make_wrapper_subclass(
                cls,
                held.size(),
                strides=held.stride(),
                storage_offset=held.storage_offset(),
                dtype=held.dtype,
                layout=held.layout,
                device=DEVICE,
            )
        made.held = held
        return made

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.held})"

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(operation, args, kwargs or {})


def _run(operation: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    here = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere)]
    is_elsewhere = len(here) < len(tensors)
    if is_elsewhere and operation not in _COPIES:
        for tensor in here:
            if tensor.dim():
                raise RuntimeError(
                    f"{operation}: all tensors must be on one device, but one of shape {tuple(tensor.shape)} is on "
                    f"{tensor.device}, and others are on {_NAME}"
                )
    asked = kwargs.get("device")
    if asked is not None:
        is_elsewhere = torch.device(asked).type == _NAME
    elif operation is torch.ops.aten.copy_.default:
        is_elsewhere = isinstance(args[0], Elsewhere)
    result = operation(*tree_map(_held, args), **tree_map(_held, kwargs))
    if operation._schema.is_mutable and isinstance(result, torch.Tensor) and not operation._schema.name.endswith("out"):
        return args[0]  # itself, changed
    return tree_map(lambda leaf: Elsewhere(leaf) if is_elsewhere and isinstance(leaf, torch.Tensor) else leaf, result)


def _held(leaf: Any) -> Any:
    if isinstance(leaf, Elsewhere):
        return leaf.held
    return torch.device("cpu") if isinstance(leaf, torch.device) else leaf
