from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR

from train.losses import Criterion
from train.model import Head, UNet, planes, replicate_pad
from train.optim import adamw, learning_rate


def pictures(sets: int, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (sets, 1, height, width), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 32), (16, 64)])
def test_both_heads_answer_at_the_size_of_the_input(height: int, width: int) -> None:
    network = UNet(4).eval()
    mask_logits, depth = network(pictures(3, height, width), pictures(3, height, width, seed=1))
    assert mask_logits.shape == depth.shape == (3, 1, height, width)
    assert mask_logits.dtype == depth.dtype == torch.float32
    assert 0 <= depth.min() <= depth.max() <= 1


def test_without_depth_the_network_is_smaller_by_that_head_and_tells_the_same_mask() -> None:
    both, alone = UNet(4).eval(), UNet(4, depth=False).eval()
    kept = {name: value for name, value in both.state_dict().items() if not name.startswith("depth_head.")}
    assert len(kept) < len(both.state_dict())
    alone.load_state_dict(kept)
    bg, fg_bg = pictures(2), pictures(2, seed=1)
    mask_logits, depth = alone(bg, fg_bg)
    assert depth is None
    assert torch.equal(mask_logits, both(bg, fg_bg).mask_logits)


@torch.no_grad()
def test_a_new_head_draws_the_four_pixels_of_a_position_alike() -> None:
    torch.manual_seed(0)
    for plane in UNet(4).eval()(pictures(1), pictures(1, seed=1)):
        quarters = [plane[..., y::2, x::2] for y in (0, 1) for x in (0, 1)]
        assert all(torch.equal(quarter, quarters[0]) for quarter in quarters)
        assert quarters[0].std() > 0


@torch.no_grad()
def test_a_repeating_head_goes_on_as_if_the_border_had_no_end() -> None:
    torch.manual_seed(0)
    features, pixels = torch.randn(1, 4, 8, 8), torch.randn(1, 12, 8, 8)
    features[..., :3], pixels[..., :3] = features[..., :1], pixels[..., :1]  # nothing changes from left to right there
    torch.manual_seed(1)
    repeating = Head(4, "replicate")(features, pixels)
    torch.manual_seed(1)
    ending = Head(4, "zeros")(features, pixels)
    assert torch.allclose(repeating[..., 0], repeating[..., 1], atol=1e-6)
    assert torch.equal(repeating[..., 4:12, 4:12], ending[..., 4:12, 4:12])
    assert not torch.allclose(repeating[..., 0], ending[..., 0], atol=1e-3)


def test_a_border_is_repeated_as_pytorch_repeats_it() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    ours, theirs = replicate_pad(x), F.pad(x, (1, 1, 1, 1), mode="replicate")
    assert torch.equal(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad((y * weight).sum(), x) for y in (ours, theirs)))


def test_other_sizes_are_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"40 x 32 pixels.*multiples of 16"):
        UNet(4)(pictures(1, 40, 32), pictures(1, 40, 32))


def test_the_gradient_reaches_every_parameter() -> None:
    torch.manual_seed(0)
    network = UNet(4)
    prediction = network(pictures(4), pictures(4, seed=1))
    Criterion()(prediction, pictures(4, seed=2), pictures(4, seed=3)).total.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_every_pixel_of_both_inputs_counts_for_both_heads() -> None:
    torch.manual_seed(0)
    network = UNet(8).eval()
    bg, fg_bg = pictures(1), pictures(1, seed=1)
    before = network(bg, fg_bg)
    for y, x in ((0, 0), (31, 31), (13, 20)):
        for changed in (0, 1):
            inputs = [bg.clone(), fg_bg.clone()]
            inputs[changed][0, 0, y, x] ^= 128
            after = network(*inputs)
            for head in (0, 1):
                assert (after[head] - before[head])[0, 0, y, x].abs() > 0


def test_a_small_network_learns_one_batch_by_heart() -> None:
    torch.manual_seed(0)
    network, criterion = UNet(4), Criterion("bce+ssim")
    bg, fg_bg = pictures(2), pictures(2)
    mask, depth = torch.zeros_like(bg), torch.zeros_like(bg)
    fg_bg[:, :, 8:20, 6:26] = pictures(2, 12, 20, seed=1)
    mask[:, :, 8:20, 6:26] = 255
    depth[:] = torch.linspace(0, 255, 32).byte()[:, None]
    optimizer = adamw(network, lr=0.01, weight_decay=0.0)
    for _ in range(60):
        losses = criterion(network(bg, fg_bg), mask, depth)
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses.mask < 0.005
    assert losses.depth < 0.02


def test_a_faint_difference_reaches_the_network_louder_than_noise_of_one_gray() -> None:
    bg = torch.full((1, 1, 2, 2), 100, dtype=torch.uint8)
    noise, faint, strong = (planes(bg, bg + change)[0, 2, 0, 0].item() for change in (1, 8, 100))
    assert 0 < noise < 0.15 < 0.8 < faint < strong <= 2
    assert torch.equal(planes(bg, bg)[:, 2:], torch.zeros(1, 1, 2, 2))
    assert planes(pictures(2), pictures(2, seed=1)).abs().max() <= 2


def test_four_numbers_of_channels_are_those_of_the_levels_and_one_is_doubled_at_each() -> None:
    torch.manual_seed(0)
    doubled = UNet(4)
    torch.manual_seed(0)
    listed = UNet((4, 8, 16, 32))
    assert all(torch.equal(a, b) for a, b in zip(doubled.parameters(), listed.parameters(), strict=True))
    assert [down[0][0].out_channels for down in UNet((4, 6, 6, 10)).down] == [6, 6, 10]  # type: ignore[index]


def test_width_sets_the_size() -> None:
    sizes = [sum(p.numel() for p in UNet(width).parameters()) for width in (4, 8, 16)]
    assert 3 < sizes[1] / sizes[0] < 4.2
    assert 3 < sizes[2] / sizes[1] < 4.2


def test_norms_and_biases_do_not_decay() -> None:
    network = UNet(4)
    decayed, free = adamw(network, lr=1.0, weight_decay=0.1).param_groups
    assert decayed["weight_decay"] == 0.1
    assert free["weight_decay"] == 0
    assert {id(p) for p in decayed["params"]} == {id(p) for n, p in network.named_parameters() if p.ndim == 4}
    assert len(decayed["params"]) + len(free["params"]) == len(list(network.parameters()))


def test_the_learning_rate_rises_then_falls_to_nothing() -> None:
    rates = [learning_rate(step / 100, highest=2.0, warmup=0.1, schedule="cosine") for step in range(101)]
    assert all(0 < a < b for a, b in pairwise(rates[:11]))
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert max(rates) == rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0)
    assert rates[100] == 0
    assert learning_rate(0.0, highest=2.0, warmup=0.0, schedule="cosine") == 2.0


def test_one_cycle_is_that_of_torch() -> None:
    total = 10_000
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = OneCycleLR(optimizer, max_lr=2.0, total_steps=total)
    for step in range(total):
        rate = learning_rate(step / total, highest=2.0, warmup=0.1, schedule="one-cycle")
        assert rate == pytest.approx(reference.get_last_lr()[0], rel=2e-3, abs=2e-4)
        optimizer.step()
        if step + 1 < total:
            reference.step()


def test_heads_join_what_is_laid_out_alike_and_it_changes_no_bit() -> None:
    torch.manual_seed(0)
    network = UNet(8).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    bg, fg_bg = pictures(3), pictures(3, seed=1)
    joined = list[torch.Tensor]()
    seeing = [head.register_forward_pre_hook(lambda _, given: joined.extend(given))
              for head in (network.mask_head, network.depth_head)]  # fmt: skip
    found = network.eval()(bg, fg_bg)
    assert len(joined) == 4
    assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in joined)
    for hook in seeing:
        hook.remove()
    for module in (network.stem, network.mask_head, network.depth_head):
        module.register_forward_pre_hook(lambda _, given: (*given[:-1], given[-1].contiguous()))
    for one, other in zip(found, network(bg, fg_bg), strict=True):
        assert torch.equal(one, other)
