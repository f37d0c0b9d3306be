"""Where the reference model computes: `--device` of verify, evaluate and quantize."""

import re
from dataclasses import dataclass

import torch

from qwen_vqa.plugin.errors import UserError, first_line_of

GIB = 2**30
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Gpus:
    """What PyTorch can use.

    Attributes:
        names: of the GPUs, in CUDA's order.
        reason: why there is none; empty where there is one.
    """

    names: tuple[str, ...] = ()
    reason: str = ""

    @classmethod
    def here(cls) -> "Gpus":
        """Of this machine."""
        if torch.cuda.is_available():
            return cls(tuple(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())))
        if torch.version.cuda is None:
            return cls(reason=f"PyTorch {torch.__version__} is built for CPUs alone (`make setup EXTRA=cuda`)")
        try:
            torch.cuda.init()
        except RuntimeError as error:  # an old driver says here which one it wants
            return cls(reason=first_line_of(error))
        return cls(reason="CUDA starts, and shows no GPU (CUDA_VISIBLE_DEVICES?)")

    def __str__(self) -> str:
        return ", ".join(f"cuda:{number} ({name})" for number, name in enumerate(self.names)) or "no GPU"


def chosen_device(asked: str, gpus: Gpus | None = None) -> torch.device:
    """The device of a `--device`; "auto" is the first GPU where there is one.

    Raises:
        UserError: there is no such device, and what there is.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", asked):
        raise UserError(f"--device {asked}: it must be auto, cpu, cuda or cuda:N.")
    if asked == "cpu":
        return CPU
    gpus = Gpus.here() if gpus is None else gpus
    # Else cuDNN's convolutions round float32 to 10 bits (TF32): a reference in float32 would not be one.
    torch.backends.cudnn.allow_tf32 = False
    if asked == "auto":
        return torch.device("cuda", 0) if gpus.names else CPU
    if not gpus.names:
        raise UserError(f"--device {asked}: there is no GPU to use: {gpus.reason}. Pass --device cpu or auto.")
    number = int(asked.partition(":")[2] or 0)
    if number >= len(gpus.names):
        raise UserError(f"--device {asked}: there is no such GPU. Here: {gpus}.")
    return torch.device("cuda", number)


def device_with_room(asked: str, needed: int, what: str, advice: str = "") -> torch.device:
    """The device of a `--device` for what takes so many bytes there; where they are not free, "auto" is the CPU.

    Args:
        what: has to have the room, for the message.
        advice: what takes less, beside another device.

    Raises:
        UserError: there is no such device, or the GPU that was asked for has not the room.
    """
    device = chosen_device(asked)
    if device.type != "cuda":
        return device
    free, _ = torch.cuda.mem_get_info(device)
    return check_room(asked, device, needed, free, what, advice)


def check_room(asked: str, device: torch.device, needed: int, free: int, what: str, advice: str = "") -> torch.device:
    """`device` where so many bytes are free on it; see `device_with_room`."""
    if needed <= free:
        return device
    lacking = f"{what} needs about {needed / GIB:.1f} GiB, and {device} has {free / GIB:.1f} free"
    if asked == "auto":
        print(f"on the CPU, since {lacking}", flush=True)
        return CPU
    raise UserError(
        f"not enough GPU memory: {lacking}. End what else runs there, {f'{advice}, ' if advice else ''}or pass "
        "--device cpu."
    )
