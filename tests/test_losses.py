import numpy as np
import pytest
import torch
from pytorch_msssim import ssim

from train.losses import Criterion, Ssim, bce, bce_of_each
from train.model import Prediction

RANDOM = torch.Generator().manual_seed(0)


def plane(sets: int = 3) -> torch.Tensor:
    return torch.rand((sets, 1, 24, 32), generator=RANDOM)


def plain_ssim(a: np.ndarray, b: np.ndarray) -> float:
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


def test_bce_is_the_formula_for_soft_masks() -> None:
    logits, mask = plane() * 8 - 4, plane()
    p = logits.double().sigmoid()
    expected = -(mask * p.log() + (1 - mask) * (1 - p).log()).mean()
    torch.testing.assert_close(bce(logits, mask).double(), expected, rtol=1e-5, atol=0)


def test_bce_stays_finite_for_sure_and_wrong_answers() -> None:
    assert bce(torch.full((1, 1, 2, 2), 1000.0), torch.zeros(1, 1, 2, 2)) == 1000


def test_ssim_is_the_formula() -> None:
    a, b = plane(2), plane(2)
    b = 0.7 * a + 0.3 * b
    expected = [plain_ssim(p[0].double().numpy(), q[0].double().numpy()) for p, q in zip(a, b, strict=True)]
    assert Ssim()(a, b).tolist() == pytest.approx(expected, rel=1e-4)


def test_ssim_is_that_of_pytorch_msssim_with_its_gradient() -> None:
    a, b = plane(5).requires_grad_(), plane(5)
    ours, theirs = Ssim()(a, b).mean(), ssim(a, b, data_range=1.0)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(value, a)[0] for value in (ours, theirs)))


def test_ssim_of_equal_pictures_is_one() -> None:
    a = plane(1)
    torch.testing.assert_close(Ssim()(a, a), torch.ones(1))


def test_the_total_is_twice_the_mask_and_once_the_depth_of_labels_over_255() -> None:
    mask, depth = ((plane() * 255).byte() for _ in range(2))
    prediction = Prediction(plane() * 4 - 2, plane())
    losses = Criterion()(prediction, mask, depth)
    torch.testing.assert_close(losses.mask, bce(prediction.mask_logits, mask.float() / 255))
    torch.testing.assert_close(losses.depth, 1 - ssim(prediction.depth, depth.float() / 255, data_range=1.0))
    torch.testing.assert_close(losses.total, 2 * losses.mask + losses.depth)


@pytest.mark.parametrize("missing", ["head", "label"])
def test_without_depth_the_total_is_twice_the_mask_and_nothing_else_has_a_name(missing: str) -> None:
    mask, depth = ((plane() * 255).byte() for _ in range(2))
    prediction = Prediction(plane() * 4 - 2, None if missing == "head" else plane())
    losses = Criterion()(prediction, mask, None if missing == "label" else depth)
    assert losses.depth is None
    assert torch.equal(losses.total, 2 * losses.mask)
    assert list(losses.named()) == ["mask_loss", "loss"]


def test_the_mean_over_sets_is_that_over_the_batch() -> None:
    logits, mask = plane() * 8 - 4, plane()
    of_each = bce_of_each(logits, mask)
    torch.testing.assert_close(of_each, torch.stack([bce(a, b) for a, b in zip(logits, mask, strict=True)]))
    torch.testing.assert_close(of_each.mean(), bce(logits, mask))


def test_the_window_is_no_part_of_a_checkpoint() -> None:
    assert not Criterion().state_dict()
