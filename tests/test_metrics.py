import math

import torch
from torch import Tensor

from train.metrics import dice, difference, iou, rmse

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
    a, b = (picture().float() / 255 for _ in range(2))
    expected = [
        math.sqrt(sum((x - y) ** 2 for x, y in zip(p.flatten().tolist(), q.flatten().tolist(), strict=True)) / 35)
        for p, q in zip(a, b, strict=True)
    ]
    torch.testing.assert_close(rmse(a, b), torch.tensor(expected))


def test_difference_of_bytes_does_not_wrap_around() -> None:
    a, b = picture(), picture()
    assert torch.equal(difference(a, b).int(), (a.int() - b.int()).abs())
    assert torch.equal(difference(a, b), difference(b, a))
