"""Every network by its name: what it takes and gives, and its published or proposed size."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.errors import InputError
from train.config import NETWORKS, network_name
from train.losses import Criterion
from train.model import UNet
from train.networks import ConvGen, Net, build_network
from train.optim import adamw

SIZES = {  # parameters, and multiplications of one set of 128 x 128
    "unet-xs": (1_635_528, 886_538_240),
    "unet-s": (4_087_656, 2_009_530_368),
    "unet-m": (5_935_568, 3_228_016_640),
    "net": (2_752_064, 45_082_476_544),
    "convgen": (312_640, 5_163_188_224),
}


def pictures(sets: int, seed: int, height: int = 32, width: int = 48) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (sets, 1, height, width), generator=generator, dtype=torch.uint8)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_there_is_a_size_of_every_network() -> None:
    assert tuple(SIZES) == NETWORKS


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_sizes(name: str) -> None:
    with torch.device("meta"):  # shapes alone
        network, picture = build_network(name).eval(), torch.zeros(1, 1, 128, 128, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        network(picture, picture)
    assert (parameters(network), counter.get_total_flops() // 2) == SIZES[name]


def test_the_original_has_its_published_number_of_parameters() -> None:
    assert parameters(ConvGen(depth=False)) == 305_728
    assert round(parameters(Net()) / 1e6, 2) == 2.75
    gray = ConvGen(depth=False, channels=1)
    assert parameters(gray) == 305_728 - 2 * 9 * 32 - 2 * 9 * 256  # two channels fewer of the first and the last layer


@pytest.mark.parametrize("depth", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_two_pictures_in_mask_and_depth_out(name: str, depth: bool) -> None:
    mask_logits, found = build_network(name, depth).eval()(pictures(2, 0), pictures(2, 1))
    assert (mask_logits.shape, mask_logits.dtype) == ((2, 1, 32, 48), torch.float32)
    if not depth:
        assert found is None
        return
    assert (found.shape, found.dtype) == ((2, 1, 32, 48), torch.float32)
    assert 0 <= found.min() <= found.max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("network_type", [Net, ConvGen])
def test_the_original_of_gray_or_equal_channels_learns_with_every_parameter(
    network_type: type[Net | ConvGen], channels: int
) -> None:
    torch.manual_seed(0)
    network, criterion = network_type(channels=channels), Criterion("bce+ssim")
    bg, fg_bg, mask, depth = (pictures(2, seed, 16, 16) for seed in range(4))
    optimizer, totals = adamw(network, lr=0.001, weight_decay=0.0), list[float]()
    for _ in range(4):
        losses = criterion(network(bg, fg_bg), mask, depth)
        losses.total.backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
        optimizer.step()
        optimizer.zero_grad()
        totals.append(losses.total.item())
    assert totals[-1] < totals[0]


@pytest.mark.parametrize(("name", "reaches"), [("net", (4, 9)), ("convgen", (4, 4))])
@torch.no_grad()
def test_the_original_sees_as_many_pixels_around_as_it_has_3_x_3_layers(name: str, reaches: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network, bg, fg_bg = build_network(name).eval(), pictures(1, 0, 32, 32), pictures(1, 1, 32, 32)
    changed = fg_bg.clone()
    changed[0, 0, 16, 16] ^= 255
    for before, after, reach in zip(network(bg, fg_bg), network(bg, changed), reaches, strict=True):
        for dim in (0, 1):
            lines = (before != after)[0, 0].any(dim).nonzero()
            assert (int(lines.min()), int(lines.max())) == (16 - reach, 16 + reach)


@torch.no_grad()
def test_a_number_is_the_width_of_the_unet_that_older_runs_have() -> None:
    old = UNet(4).eval()
    new = build_network(network_name({"width": 4, "depth": True})).eval()
    new.load_state_dict(old.state_dict())
    for ours, theirs in zip(new(pictures(1, 0), pictures(1, 1)), old(pictures(1, 0), pictures(1, 1)), strict=True):
        assert torch.equal(ours, theirs)
    assert network_name({"model": "net", "width": 4}) == "net"


def test_more_blocks_stand_at_the_coarse_levels_alone() -> None:
    one, three = (dict(build_network(name).named_parameters()) for name in ("unet-4", "unet-4x3"))
    assert build_network("unet-4x1").state_dict().keys() == build_network("unet-4").state_dict().keys()
    added = {name.rsplit(".", 2)[0] for name in three.keys() - one.keys()}
    assert {".".join(name.split(".")[:3]) for name in added} == {f"down.{i}.{j}" for i in (1, 2) for j in (2, 3)}
    assert all(three[name].shape == weight.shape for name, weight in one.items())


@pytest.mark.parametrize("name", ["", "unet", "unet-", "unet-0", "unet-\u0664", "unet-xl", "4", "resnet", "unet-513",
                                  "unet-8x", "unet-8x0", "unet-8x10"])  # fmt: skip
def test_other_names_are_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(
        InputError, match=rf"^network '{name}': expected one of unet-xs, .*convgen, or unet-.*unet-32, or"
    ):
        build_network(name)
