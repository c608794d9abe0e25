import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pytorch_msssim import ssim

from train.losses import Ssim

RANDOM = torch.Generator().manual_seed(0)


def plane(sets: int = 3) -> torch.Tensor:
    return torch.rand((sets, 1, 24, 32), generator=RANDOM)


def plain_ssim(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Wang et al. 2004, pixel by pixel: the mean over all windows that lie inside the picture."""
    offsets = np.arange(11) - 5
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    weights = np.outer(line, line) / line.sum() ** 2
    values = []
    for y in range(a.shape[0] - 10):
        for x in range(a.shape[1] - 10):
            p, q = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
            mean_p, mean_q = (weights * p).sum(), (weights * q).sum()
            var_p, var_q = (weights * p * p).sum() - mean_p**2, (weights * q * q).sum() - mean_q**2
            both = (weights * p * q).sum() - mean_p * mean_q
            c1, c2 = 0.01**2, 0.03**2
            top = (2 * mean_p * mean_q + c1) * (2 * both + c2)
            values.append(top / ((mean_p**2 + mean_q**2 + c1) * (var_p + var_q + c2)))
    return float(np.mean(values))


def test_it_is_the_formula() -> None:
    a, b = plane(2), plane(2)
    b = 0.7 * a + 0.3 * b
    expected = [plain_ssim(p[0].double().numpy(), q[0].double().numpy()) for p, q in zip(a, b, strict=True)]
    assert Ssim()(a, b).tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("likeness", [0.0, 0.9, 1.0])
def test_it_is_that_of_pytorch_msssim_with_its_gradient(likeness: float) -> None:
    a = plane(5).requires_grad_()
    b = likeness * a.detach() + (1 - likeness) * plane(5)
    ours, theirs = Ssim()(a, b), ssim(a, b, data_range=1.0, size_average=False)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    ours_gradient, theirs_gradient = (torch.autograd.grad(value.sum(), a)[0] for value in (ours, theirs))
    torch.testing.assert_close(ours_gradient, theirs_gradient, rtol=0, atol=1e-6)


def test_of_flat_and_equal_pictures_it_is_that_of_pytorch_msssim() -> None:
    flat = torch.full((2, 1, 16, 16), 0.7)
    for a, b in ((flat, flat), (flat, flat / 2), (plane(2), torch.zeros(2, 1, 24, 32))):
        expected = ssim(a, b, data_range=1.0, size_average=False)
        torch.testing.assert_close(Ssim()(a, b), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(Ssim()(flat, flat), torch.ones(2))


def test_the_window_is_no_part_of_a_checkpoint() -> None:
    assert not Ssim().state_dict()
    assert Ssim().window.sum().item() == pytest.approx(1)
