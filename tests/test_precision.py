"""Number formats: no TF32."""

from pathlib import Path

import torch

from tests.test_learner import CPU, a_learner
from tests.test_train_command import trained_on
from train.run import open_run


def convolutions_round() -> bool:
    """Whether cuDNN may round float32 to TF32."""
    cudnn = torch.backends.cudnn
    return bool(cudnn.conv.fp32_precision != "ieee" if hasattr(cudnn, "conv") else cudnn.allow_tf32)


def test_convolutions_of_float32_are_not_rounded(packed: Path, tmp_path: Path) -> None:
    run = trained_on(packed, tmp_path / "run", "--no-report")
    for opened in (lambda: a_learner(), lambda: open_run(run, "last", CPU)):
        if hasattr(torch.backends.cudnn, "conv"):
            torch.backends.cudnn.conv.fp32_precision = "tf32"
        else:
            torch.backends.cudnn.allow_tf32 = True
        assert convolutions_round()
        opened()
        assert not convolutions_round()
