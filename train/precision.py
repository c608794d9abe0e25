"""The number format of a network's arithmetic; weights, losses and the optimiser are float32 in either."""

import torch

PRECISIONS = ("auto", "float32", "bf16")


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """A context in which convolutions are of a precision of PRECISIONS; auto: bf16 on a GPU, float32 on a CPU.

    bf16 is PyTorch's automatic mixed precision in bfloat16. It needs no scaling of the loss: its range is float32's.
    """
    bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)
