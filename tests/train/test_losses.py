import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import InputError
from train.losses import (
    RECIPES,
    SHARPNESS,
    Criterion,
    Ssim,
    depth_bce,
    dice_loss,
    edge_loss,
    gradient_loss,
    mask_bce,
    sharpened,
    to_float,
)
from train.model import Prediction

RANDOM = torch.Generator().manual_seed(0)
Plane = NDArray[np.float64]  # [H,W]


def plane(sets: int = 3, height: int = 24, width: int = 32) -> Tensor:
    return torch.rand((sets, 1, height, width), generator=RANDOM)


def mask_with_a_block(sets: int = 3) -> Tensor:
    """A soft mask, mostly 0 and 1, whose outline runs through the picture and along its border."""
    mask = torch.zeros(sets, 1, 24, 32)
    mask[:, :, 5:14, :9] = 1
    mask[:, :, 5, 2:6] = 0.4
    return mask


def per_sample(reference: Callable[[Plane, Plane], float], a: Tensor, b: Tensor) -> Tensor:
    """A reference of two planes, for each set of two [N,1,H,W]."""
    pairs = zip(a.double().numpy(), b.double().numpy(), strict=True)
    return torch.tensor([reference(p[0], q[0]) for p, q in pairs], dtype=torch.float64)


def plain_bce(logit: float, target: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -(target * math.log(p) + (1 - target) * math.log(1 - p))


def plain_dice(logits: Plane, mask: Plane) -> float:
    both = found = true = 0.0
    for logit, m in zip(logits.flat, mask.flat, strict=True):
        p = 1 / (1 + math.exp(-logit))
        both, found, true = both + p * m, found + p, true + m
    return 1 - (2 * both + 1) / (found + true + 1)


def plain_edge(logits: Plane, mask: Plane) -> float:
    top = bottom = 0.0
    for y, x in np.ndindex(mask.shape):
        around = mask[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
        edge = around.max() - around.min()
        top, bottom = top + edge * plain_bce(float(logits[y, x]), float(mask[y, x])), bottom + edge
    return float(top / (bottom + 1))


def plain_gradient(depth: Plane, truth: Plane) -> float:
    error, scales = depth - truth, []
    for _ in range(4):
        height, width = error.shape
        down = [abs(error[y + 1, x] - error[y, x]) for y in range(height - 1) for x in range(width)]
        right = [abs(error[y, x + 1] - error[y, x]) for y in range(height) for x in range(width - 1)]
        scales.append(np.mean(down) + np.mean(right))
        halved = np.zeros((height // 2, width // 2))
        for y, x in np.ndindex(halved.shape):
            halved[y, x] = error[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean()
        error = halved
    return float(np.mean(scales))


def plain_mean_bce(logits: Plane, mask: Plane) -> float:
    return math.fsum(plain_bce(x, m) for x, m in zip(logits.flat, mask.flat, strict=True)) / mask.size


def test_bce_is_the_formula_for_soft_masks() -> None:
    logits, mask = plane() * 8 - 4, plane()
    expected = per_sample(plain_mean_bce, logits, mask)
    torch.testing.assert_close(mask_bce(logits, mask).double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(depth_bce(logits.sigmoid(), mask).double(), expected, rtol=1e-5, atol=0)


def test_bce_stays_finite_for_sure_and_wrong_answers() -> None:
    assert mask_bce(torch.full((1, 1, 2, 2), 1000.0), torch.zeros(1, 1, 2, 2)) == 1000
    assert depth_bce(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)) == 100


@pytest.mark.parametrize("mask", [plane(), mask_with_a_block()], ids=["soft", "block"])
@pytest.mark.parametrize(("loss", "reference"), [(dice_loss, plain_dice), (edge_loss, plain_edge)])
def test_dice_and_edge_are_their_formulas(
    loss: Callable[[Tensor, Tensor], Tensor], reference: Callable[[Plane, Plane], float], mask: Tensor
) -> None:
    logits = plane() * 8 - 4
    torch.testing.assert_close(loss(logits, mask).double(), per_sample(reference, logits, mask), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("height", "width"), [(24, 32), (27, 33)])
def test_the_gradient_is_its_formula_at_four_scales(height: int, width: int) -> None:
    depth, truth = plane(3, height, width), plane(3, height, width)
    expected = per_sample(plain_gradient, depth, truth)
    torch.testing.assert_close(gradient_loss(depth, truth).double(), expected, rtol=1e-5, atol=0)


def test_a_perfect_mask_costs_nothing_and_an_error_costs_most_at_the_edge() -> None:
    mask = mask_with_a_block(1).round()
    logits = mask * 200 - 100
    assert dice_loss(logits, mask).item() == pytest.approx(0, abs=1e-6)
    assert edge_loss(logits, mask).item() == pytest.approx(0, abs=1e-6)
    near, far = logits.clone(), logits.clone()
    near[0, 0, 15, 4], far[0, 0, 23, 31] = 100, 100  # two pixels outside the block, and far away
    assert edge_loss(far, mask) == edge_loss(logits, mask) < edge_loss(near, mask)
    torch.testing.assert_close(dice_loss(far, mask), dice_loss(near, mask))


def test_the_gradient_is_blind_to_a_shift_and_sees_a_slope() -> None:
    depth = plane() / 2
    assert gradient_loss(depth + 0.25, depth).abs().max() < 1e-6
    slope = torch.linspace(0, 0.5, 32).expand(3, 1, 24, 32)
    at_scales = (1 + 2 + 4 + 8) / 4 * 0.5 / 31  # a pixel of scale s is s pixels wide
    torch.testing.assert_close(gradient_loss(depth + slope, depth), torch.full((3,), at_scales), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("label", [0, 255])
@pytest.mark.parametrize("sure", [0.0, 60.0, -60.0])
def test_gradients_are_finite_for_empty_and_full_masks_and_constant_depth(name: str, label: int, sure: float) -> None:
    logits, depth_logits = (torch.full((2, 1, 32, 32), sure, requires_grad=True) for _ in range(2))
    labels = torch.full((2, 1, 32, 32), label, dtype=torch.uint8)
    losses = Criterion(name)(Prediction(logits, depth_logits.sigmoid()), labels, labels)
    losses.total.backward()
    assert all(loss.isfinite() for loss in losses.named().values())
    for head in (logits, depth_logits):
        assert head.grad is not None
        assert head.grad.isfinite().all()
    if sure == 0:  # everything is half wrong, and the gradient of the mask says in which direction
        assert logits.grad is not None
        assert ((logits.grad > 0) == (label == 0)).all()


@pytest.mark.parametrize("name", RECIPES)
def test_the_totals_are_the_weighted_sums_of_the_parts(name: str) -> None:
    mask, depth = ((plane() * 255).byte() for _ in range(2))
    prediction = Prediction(plane() * 4 - 2, plane())
    losses = Criterion(name, mask_weight=3, depth_weight=0.25).per_sample(prediction, mask, depth)
    assert losses.parts.keys() == RECIPES[name].keys() - {SHARPNESS}
    for head, total in (("mask", losses.mask), ("depth", losses.depth)):
        weights = {
            part: weight for part, weight in RECIPES[name].items() if part.startswith(head) and part != SHARPNESS
        }
        torch.testing.assert_close(total, sum(weight * losses.parts[part] for part, weight in weights.items()))
    assert losses.depth is not None
    torch.testing.assert_close(losses.total, 3 * losses.mask + 0.25 * losses.depth)
    assert list(losses.named()) == ["mask_loss", "depth_loss", "loss", *(f"{part}_loss" for part in losses.parts)]


def test_bce_and_ssim_are_the_originals_on_labels_over_255_weighted_two_and_one() -> None:
    mask, depth = ((plane() * 255).byte() for _ in range(2))
    prediction, criterion = Prediction(plane() * 4 - 2, plane()), Criterion("bce+ssim")
    losses = criterion(prediction, mask, depth)
    expected = F.binary_cross_entropy_with_logits(prediction.mask_logits, mask / 255)
    torch.testing.assert_close(losses.mask, expected)
    assert prediction.depth is not None
    torch.testing.assert_close(losses.depth, 1 - criterion.ssim(prediction.depth, depth / 255).mean())
    torch.testing.assert_close(losses.total, 2 * losses.mask + losses.depth)
    both = Criterion("bce")(Prediction(prediction.mask_logits, prediction.mask_logits.sigmoid()), mask, mask)
    torch.testing.assert_close(both.depth, both.mask)


@pytest.mark.parametrize("name", RECIPES)
def test_the_loss_of_a_batch_is_the_mean_over_its_sets_each_by_itself(name: str) -> None:
    mask, depth = ((plane() * 255).byte() for _ in range(2))
    prediction, criterion = Prediction(plane() * 8 - 4, plane()), Criterion(name)
    batch = criterion(prediction, mask, depth).named()
    each = criterion.per_sample(prediction, mask, depth).named()
    assert prediction.depth is not None
    for i in range(len(mask)):
        one = Prediction(prediction.mask_logits[i : i + 1], prediction.depth[i : i + 1])
        alone = criterion(one, mask[i : i + 1], depth[i : i + 1]).named()
        for part, loss in alone.items():
            torch.testing.assert_close(each[part][i], loss)
    for part, loss in batch.items():
        torch.testing.assert_close(each[part].mean(), loss)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("missing", ["head", "label"])
def test_without_depth_the_total_is_the_mask_by_its_weight_and_nothing_of_depth_has_a_name(
    name: str, missing: str
) -> None:
    mask, depth = ((plane() * 255).byte() for _ in range(2))
    prediction = Prediction(plane() * 4 - 2, None if missing == "head" else plane())
    losses = Criterion(name)(prediction, mask, None if missing == "label" else depth)
    assert losses.depth is None
    torch.testing.assert_close(losses.total, (6 if name == "sharp" else 2) * losses.mask)
    assert not [part for part in losses.named() if "depth" in part]


def test_bfloat16_predictions_are_weighed_in_float32() -> None:
    mask, depth = ((plane() * 255).byte() for _ in range(2))
    prediction = Prediction((plane() * 4 - 2).bfloat16(), plane().bfloat16())
    losses = Criterion()(prediction, mask, depth)
    assert prediction.depth is not None
    expected = Criterion()(Prediction(prediction.mask_logits.float(), prediction.depth.float()), mask, depth)
    assert {part: loss.item() for part, loss in losses.named().items()} == {
        part: loss.item() for part, loss in expected.named().items()
    }
    assert losses.total.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dice",), r"^loss 'dice': expected one of bce, bce\+ssim, combined, sharp$"),
        (("bce", -1.0), "^weight -1.0 of the mask loss: expected 0 or more$"),
        (("bce", 1.0, math.nan), "^weight nan of the depth loss: expected 0 or more$"),
    ],
)
def test_unknown_recipes_and_weights_are_refused(arguments: tuple[str, float, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Criterion(*arguments)


def test_a_criterion_is_no_part_of_a_checkpoint() -> None:
    assert not Criterion().state_dict()
    assert not list(Criterion().parameters())


def test_labels_that_were_scaled_already_are_refused() -> None:
    labels = torch.tensor([0, 51, 255], dtype=torch.uint8)
    assert to_float(labels).tolist() == [0, pytest.approx(0.2), 1]
    with pytest.raises(TypeError, match=r"^a picture of torch\.float32: expected torch\.uint8, 0 to 255$"):
        to_float(to_float(labels))


HOLES = torch.zeros(3, 1, 24, 32, dtype=torch.bool)
HOLES[:, :, 3:7, 20:24], HOLES[1, :, 15, 4], HOLES[2] = True, True, True  # of the last set nothing was measured


def plain_mean(values: Plane, counts: NDArray[np.bool_]) -> float:
    return float(values[counts].mean()) if counts.any() else 0.0


def plain_gradient_between_holes(depth: Plane, truth: Plane, valid: NDArray[np.bool_]) -> float:
    error, scales = depth - truth, []
    for _ in range(4):
        down, right = np.abs(np.diff(error, axis=0)), np.abs(np.diff(error, axis=1))
        scales.append(plain_mean(down, valid[1:] & valid[:-1]) + plain_mean(right, valid[:, 1:] & valid[:, :-1]))
        height, width = error.shape
        blocks = (height // 2, 2, width // 2, 2)
        even = (slice(height // 2 * 2), slice(width // 2 * 2))
        error, valid = error[even].reshape(blocks).mean((1, 3)), np.all(valid[even].reshape(blocks), axis=(1, 3))
    return float(np.mean(scales))


def plain_ssim_between_holes(depth: Plane, truth: Plane, valid: NDArray[np.bool_]) -> float:
    whole = np.array([[valid[y : y + 11, x : x + 11].all() for x in range(22)] for y in range(14)])
    similarity = Ssim().map(*(torch.from_numpy(of)[None, None].float() for of in (depth, truth)))
    return plain_mean(1 - similarity[0, 0].double().numpy(), whole)


@pytest.mark.parametrize(
    ("part", "reference"),
    [
        ("depth_l1", lambda depth, truth, valid: plain_mean(np.abs(depth - truth), valid)),
        ("depth_bce", lambda depth, truth, valid: plain_mean(
            -(truth * np.log(depth) + (1 - truth) * np.log(1 - depth)), valid)),
        ("depth_gradient", plain_gradient_between_holes),
        ("depth_ssim", plain_ssim_between_holes),
    ],
)  # fmt: skip
def test_losses_of_depth_with_holes_are_their_formulas(
    part: str, reference: Callable[[Plane, Plane, NDArray[np.bool_]], float]
) -> None:
    depth, truth = plane(), plane()
    found = Criterion().depth_parts[part](depth, truth, ~HOLES).double()
    each = zip(*(of[:, 0].double().numpy() for of in (depth, truth)), (~HOLES)[:, 0].numpy(), strict=True)
    torch.testing.assert_close(found, torch.tensor([reference(*of) for of in each]).double(), rtol=1e-4, atol=1e-6)
    assert found[2] == 0


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_in_a_hole_changes_no_loss_and_gets_no_gradient(name: str) -> None:
    criterion, mask = Criterion(name), (mask_with_a_block() * 255).byte()
    truth = torch.randint(0, 256, (3, 1, 24, 32), generator=RANDOM, dtype=torch.uint8)
    logits, depth = plane(), plane().requires_grad_()
    losses = criterion.per_sample(Prediction(logits, depth), mask, truth, ~HOLES)
    losses.total.sum().backward()  # type: ignore[no-untyped-call]
    assert depth.grad is not None
    assert not depth.grad[HOLES].any()
    assert depth.grad[~HOLES].any()
    assert depth.grad.isfinite().all()
    other = criterion.per_sample(
        Prediction(logits, torch.where(HOLES, 1 - depth.detach(), depth.detach())),
        mask,
        truth ^ (HOLES * 255).byte(),
        ~HOLES,
    )
    for part, loss in losses.named().items():
        torch.testing.assert_close(other.named()[part], loss.detach())
    everywhere = criterion.per_sample(Prediction(logits, depth), mask, truth, torch.ones_like(HOLES))
    for part, loss in criterion.per_sample(Prediction(logits, depth), mask, truth).named().items():
        torch.testing.assert_close(everywhere.named()[part], loss)


def test_sharp_is_combined_with_labels_on_one_side_of_a_half_and_more_ssim() -> None:
    prediction = Prediction(plane() * 4 - 2, plane())
    levels = torch.tensor([0, 51, 95, 96, 110, 128, 143, 159, 160, 255], dtype=torch.uint8)
    mask = levels[torch.arange(prediction.mask_logits.numel()) % len(levels)].view_as(prediction.mask_logits)
    expected = torch.tensor([0, 0, 0, 0.00588, 0.22549, 0.50784, 0.74314, 0.99412, 1, 1])
    torch.testing.assert_close(sharpened(to_float(levels), 4), expected, rtol=0, atol=1e-5)
    depth = (plane() * 255).byte()
    ours = Criterion("sharp", mask_weight=2)(prediction, mask, depth).named()
    hard = (sharpened(to_float(mask), 4) * 255).round().byte()
    theirs = Criterion("combined")(prediction, hard, depth).named()
    assert ours.keys() == theirs.keys()
    for name in ("depth_loss", "loss"):  # SSIM once more
        theirs[name] = theirs[name] + theirs["depth_ssim_loss"]
    assert all(abs(ours[name] - theirs[name]) < 2e-3 * theirs[name] for name in ours)
    assert ours["mask_loss"] != Criterion("combined")(prediction, mask, depth).mask
