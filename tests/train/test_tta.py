import pytest
import torch
from torch import Tensor, nn

from tests.train.test_networks import pictures
from train.model import Prediction
from train.networks import build_network
from train.tta import MirrorAveraged, mean_probability


def a_network(name: str, *, depth: bool) -> nn.Module:
    torch.manual_seed(0)
    return build_network(name, depth).eval()


@pytest.mark.parametrize("depth", [True, False])
@pytest.mark.parametrize("name", ["unet-4", "net", "convgen"])
@torch.no_grad()
def test_it_is_the_mean_of_both_passes_and_the_mirror_of_mirrored_pictures(name: str, depth: bool) -> None:
    network, bg, fg_bg = a_network(name, depth=depth), pictures(3, 0), pictures(3, 1)
    plain: Prediction = network(bg, fg_bg)
    of_mirror: Prediction = network(bg.flip(3), fg_bg.flip(3))
    found: Prediction = MirrorAveraged(network)(bg, fg_bg)
    mirrored: Prediction = MirrorAveraged(network)(bg.flip(3), fg_bg.flip(3))
    back = of_mirror.mask_logits.flip(3)
    assert (plain.mask_logits - back).abs().max() > 0.01, "a symmetric network shows nothing"
    expected = (plain.mask_logits.sigmoid() + back.sigmoid()) / 2
    assert torch.allclose(found.mask_logits.sigmoid(), expected, atol=1e-6)
    assert torch.equal(mirrored.mask_logits, found.mask_logits.flip(3))
    if plain.depth is None or of_mirror.depth is None or mirrored.depth is None or found.depth is None:
        assert not depth
        assert found.depth is None
    else:
        assert torch.equal(found.depth, (plain.depth + of_mirror.depth.flip(3)) / 2)
        assert torch.equal(mirrored.depth, found.depth.flip(3))


@torch.no_grad()
def test_it_costs_two_passes_of_the_batch() -> None:
    network, passes = a_network("unet-4", depth=True), list[int]()
    network.register_forward_hook(lambda _, inputs, __: passes.append(len(inputs[0])))
    MirrorAveraged(network)(pictures(3, 0), pictures(3, 1))
    assert passes == [3, 3]


def test_the_mean_of_probabilities_has_logits_of_any_size() -> None:
    a, b = torch.tensor([[0.0, 3.0, 2.0, 100.0, 200.0, -300.0], [0.0, 3.0, -1.0, -100.0, 300.0, -200.0]]).double()
    found = mean_probability(a, b)
    assert found[:4].tolist() == pytest.approx([0, 3, logit_of_mean(a[2], b[2]), 0])
    assert found[4].item() == pytest.approx(200 + torch.tensor(2.0).log().item())
    assert found[5].item() == pytest.approx(-200 - torch.tensor(2.0).log().item())
    assert torch.equal(found, mean_probability(b, a))
    assert torch.equal(found > 0, a + b > 0)
    for wrong in (torch.nan, torch.inf, -torch.inf):
        assert mean_probability(torch.tensor(wrong), torch.tensor(1.0)).isnan()


def logit_of_mean(a: Tensor, b: Tensor) -> float:
    return ((a.sigmoid() + b.sigmoid()) / 2).logit().item()
