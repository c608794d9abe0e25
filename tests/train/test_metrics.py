import math

import pytest
import torch
from torch import Tensor

from train.metrics import BOUNDARY_PIXELS, boundary_f, depth_scores, dice, difference, iou, mask_scores, outline, within

RANDOM = torch.Generator().manual_seed(0)


def picture(sets: int = 4) -> Tensor:
    return torch.randint(0, 256, (sets, 1, 5, 7), generator=RANDOM, dtype=torch.uint8)


def plain_iou(found: Tensor, mask: Tensor) -> float:
    both = either = 0
    for f, m in zip(found.flatten().tolist(), mask.flatten().tolist(), strict=True):
        both += f and m / 255 > 0.5
        either += f or m / 255 > 0.5
    return both / either if either else 1.0


def test_iou_is_that_of_each_set_by_itself() -> None:
    found, mask = picture() > 100, picture()
    expected = [plain_iou(f, m) for f, m in zip(found, mask, strict=True)]
    torch.testing.assert_close(iou(found, mask), torch.tensor(expected))


def test_iou_counts_a_soft_mask_from_the_half() -> None:
    found = torch.tensor([True, False]).view(1, 1, 1, 2)
    for value, expected in ((127, 0.0), (128, 1.0)):
        assert iou(found, torch.tensor([value, 0], dtype=torch.uint8).view(1, 1, 1, 2)).item() == expected


def test_iou_of_an_empty_mask_is_one_if_nothing_was_found_and_else_zero() -> None:
    mask = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    found = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    found[1, 0, 2, 3] = True
    assert iou(found, mask).tolist() == [1.0, 0.0]


def test_dice_is_that_of_the_masks() -> None:
    found, mask = picture() > 100, picture()
    truth = mask >= 128
    expected = [2 * (f & t).sum().item() / (f.sum() + t.sum()).item() for f, t in zip(found, truth, strict=True)]
    torch.testing.assert_close(dice(iou(found, mask)), torch.tensor(expected))


def test_rmse_is_that_of_each_set_by_itself() -> None:
    a, b = torch.rand(2, 4, 1, 11, 13, generator=RANDOM)
    expected = [
        math.sqrt(sum((x - y) ** 2 for x, y in zip(p.flatten().tolist(), q.flatten().tolist(), strict=True)) / 143)
        for p, q in zip(a, b, strict=True)
    ]
    scores = depth_scores(a, b, torch.zeros(4, 1, 11, 13, dtype=torch.uint8), detailed=False)
    torch.testing.assert_close(scores["depth_rmse"], torch.tensor(expected))


def test_difference_of_bytes_does_not_wrap_around() -> None:
    a, b = picture(), picture()
    assert torch.equal(difference(a, b).int(), (a.int() - b.int()).abs())
    assert torch.equal(difference(a, b), difference(b, a))


def blobs(sets: int, height: int = 9, width: int = 13) -> Tensor:
    """Masks of a few rectangles, which may touch the frame; uint8."""
    mask = torch.zeros(sets, 1, height, width, dtype=torch.uint8)
    for one in mask:
        for _ in range(2):
            top, left, tall, wide = (int(torch.randint(0, n, (), generator=RANDOM)) for n in (height, width, 6, 6))
            one[0, top : top + tall, left : left + wide] = 255
    return mask


def plain_outline(mask: Tensor) -> list[tuple[int, int]]:
    inside = {(int(y), int(x)) for y, x in mask[0].nonzero()}
    height, width = mask.shape[-2:]
    return [
        (y, x)
        for y, x in sorted(inside)
        if any(
            0 <= v < height and 0 <= u < width and (v, u) not in inside
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
        )
    ]


def plain_boundary_f(found: Tensor, mask: Tensor, pixels: int) -> float:
    ours, true = plain_outline(found), plain_outline(mask >= 128)
    if not ours and not true:
        return 1.0
    if not ours or not true:
        return 0.0
    precision = sum(any(math.dist(a, b) <= pixels for b in true) for a in ours) / len(ours)
    recall = sum(any(math.dist(a, b) <= pixels for b in ours) for a in true) / len(true)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("pixels", [*BOUNDARY_PIXELS, 3])
def test_boundary_f_is_that_of_a_plain_search_for_the_nearest_outline(pixels: int) -> None:
    found, mask = blobs(200) >= 128, blobs(200)
    found[:50] = mask[:50].roll(1, -1) >= 128  # nearly right
    mask[60], found[60] = 0, False
    expected = [plain_boundary_f(f, m, pixels) for f, m in zip(found, mask, strict=True)]
    torch.testing.assert_close(boundary_f(found, mask, pixels), torch.tensor(expected))
    assert {0.0, 1.0} <= set(expected)
    assert len(set(expected)) > 20


def test_within_is_a_plain_search() -> None:
    mask = blobs(20) >= 128
    for pixels in (1, 2, 12):
        for one, near in zip(mask, within(mask, pixels), strict=True):
            inside = one[0].nonzero().tolist()
            for y in range(one.shape[1]):
                for x in range(one.shape[2]):
                    assert near[0, y, x].item() == any(math.dist((y, x), other) <= pixels for other in inside)


def test_the_frame_is_no_outline() -> None:
    assert not outline(torch.ones(1, 1, 6, 6, dtype=torch.bool)).any()


def test_a_mask_moved_by_a_pixel_agrees_from_one_pixel_on() -> None:
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    mask[..., 4:10, 4:10] = 255
    moved = mask.roll(2, -1) >= 128
    assert boundary_f(moved, mask, 2).item() == 1
    assert boundary_f(moved, mask, 1).item() < 1


def test_a_perfect_mask_scores_one_everywhere() -> None:
    mask = blobs(30)
    for scores in mask_scores(mask >= 128, mask).values():
        assert scores.tolist() == [1.0] * 30
