"""The number format of a network's arithmetic; weights, losses and the optimiser are float32 in any of them."""

import warnings

import torch

PRECISIONS = ("auto", "float32", "bf16", "fp16")
TENSOR_CORES = (7, 0)  # compute capability from which float16 products have units of their own


def number_format(precision: str, device: torch.device) -> str:
    """Which of float32, bf16 and fp16 a precision of PRECISIONS means on a device.

    auto: float32 on a CPU; on a GPU bf16 where its hardware has it (elsewhere convolutions crawl), else fp16 where it
    has tensor cores.
    """
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "float32"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16"
    return "fp16" if torch.cuda.get_device_capability(device) >= TENSOR_CORES else "float32"


def describe_format(precision: str, device: torch.device) -> str:
    """The number format, with the reason where auto has not the best."""
    found = number_format(precision, device)
    if precision != "auto" or device.type != "cuda" or found == "bf16":
        return found
    return f"{found} (no {'bfloat16' if found == 'fp16' else 'tensor cores'} in hardware)"


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """A context in which convolutions are of a precision of PRECISIONS.

    bf16 and fp16 are PyTorch's automatic mixed precision. The loss of fp16 has to be scaled while training, or small
    gradients vanish (`torch.amp.GradScaler`); the range of bf16 is that of float32.
    """
    found = number_format(precision, device)
    dtype = torch.float16 if found == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=found != "float32")


def forbid_tf32() -> None:
    """Have float32 convolutions on GPUs computed in float32, SSIM's among them: cuDNN rounds to TF32 by default.

    Of matrix products PyTorch does not round by default. Set by the older of PyTorch's two interfaces, which exporters
    and `torch.backends.cudnn.flags` read: they raise where the newer one alone was used. Some versions warn of it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.backends.cudnn.allow_tf32 = False
