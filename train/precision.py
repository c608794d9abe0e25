"""The number format of a network's arithmetic; weights, losses and the optimiser are float32 in either."""

import torch

PRECISIONS = ("auto", "float32", "bf16")


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """A context in which convolutions are of a precision of PRECISIONS; auto: bf16 on a GPU, float32 on a CPU.

    bf16 is PyTorch's automatic mixed precision in bfloat16. It needs no scaling of the loss: its range is float32's.
    """
    bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def forbid_tf32() -> None:
    """Have float32 convolutions on GPUs computed in float32, SSIM's among them: cuDNN rounds to TF32 by default.

    Of matrix products PyTorch does not round by default. Once this is called, reading `torch.backends.cudnn.allow_tf32`
    raises RuntimeError from PyTorch 2.9 on; setting it would warn there.
    """
    cudnn = torch.backends.cudnn
    if hasattr(cudnn, "conv"):  # from PyTorch 2.9 on
        cudnn.conv.fp32_precision = "ieee"
    else:
        cudnn.allow_tf32 = False
