from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_msssim import ssim
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.loading.batch import Batch
from pipeline.loading.loader import Loader
from train.losses import Criterion
from train.metrics import difference, iou
from train.model import Prediction, UNet
from train.scoring import (
    NETWORK,
    TRIVIAL,
    MeanScores,
    describe,
    mean_scores,
    predict,
    score_batch,
    score_sets,
    sum_scores,
)

RANDOM = torch.Generator().manual_seed(0)
THRESHOLD = 40


def a_batch(sets: int, start: int, *, depth: bool = True) -> Batch:
    bg, fg_bg, mask, near = (
        torch.randint(0, 256, (sets, 1, 32, 32), generator=RANDOM, dtype=torch.uint8) for _ in range(4)
    )
    return Batch(bg, fg_bg, mask, near if depth else None, torch.arange(start, start + sets))


def one_by_one(batches: list[Batch]) -> Iterator[Batch]:
    for batch in batches:
        for place in range(len(batch.index)):
            yield replace(batch, **{n: p[place : place + 1] for n, p in vars(batch).items() if p is not None})


def sums_of(network: nn.Module, batches: list[Batch]) -> MeanScores:
    return sum_scores(*score_sets(network, Criterion(), batches, THRESHOLD))


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return UNet(4)


@pytest.mark.parametrize("depth", [True, False])
def test_scores_are_those_of_each_set_by_itself(depth: bool, network: nn.Module) -> None:
    batches = [a_batch(3, 10, depth=depth), a_batch(0, 0, depth=depth), a_batch(1, 7, depth=depth)]
    criterion = Criterion()
    rows, values = score_sets(network, criterion, batches, THRESHOLD, "float32")
    assert rows.tolist() == [10, 11, 12, 7]
    network.eval()
    for place, batch in enumerate(one_by_one(batches)):
        with torch.no_grad():
            prediction: Prediction = network(batch.bg, batch.fg_bg)
            losses = criterion(prediction, batch.mask, batch.depth)
        expected: dict[str, Tensor] = {
            **losses.named(),
            "mask_iou": iou(prediction.mask_logits > 0, batch.mask)[0],
            "baseline_iou": iou(difference(batch.bg, batch.fg_bg) > THRESHOLD, batch.mask)[0],
        }
        for name in ("mask", "baseline"):
            expected[f"{name}_dice"] = 2 * expected[f"{name}_iou"] / (1 + expected[f"{name}_iou"])
        if prediction.depth is not None and batch.depth is not None:
            expected["depth_ssim"] = ssim(prediction.depth, batch.depth.float() / 255, data_range=1.0)
            expected["depth_rmse"] = (prediction.depth - batch.depth.float() / 255).square().mean().sqrt()
        assert values.keys() == expected.keys()
        for name, value in expected.items():
            assert values[name][place] == pytest.approx(value.item(), rel=1e-5, abs=1e-6)


def test_means_are_over_sets_not_over_batches(network: nn.Module) -> None:
    batches = [a_batch(3, 10), a_batch(1, 7)]
    rows, values = score_sets(network, Criterion(), batches, THRESHOLD)
    means = mean_scores([sum_scores(rows, values)])
    assert means["sets"] == 4
    for name, of_sets in values.items():
        assert means[name] == pytest.approx(sum(of_sets.tolist()) / 4)
    alone = [sums_of(network, [batch]) for batch in one_by_one(batches)]
    assert mean_scores(alone) == pytest.approx(means, rel=1e-5)  # as ranks put theirs together
    nobody = sums_of(network, [a_batch(0, 0)])
    assert mean_scores([nobody, sum_scores(rows, values), nobody]) == means


def test_a_network_without_depth_is_scored_by_its_mask_on_sets_that_have_it() -> None:
    scores = mean_scores([sums_of(UNet(4, depth=False), [a_batch(2, 0)])])
    assert not [name for name in scores if "depth" in name]
    assert describe(scores) == f"mask IoU {scores['mask_iou']:.3f}"


def test_scoring_leaves_the_networks_mode_as_it_was(network: nn.Module) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    score_sets(network, Criterion(), [a_batch(2, 0)], THRESHOLD)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_nothing_to_score_is_an_error(network: nn.Module) -> None:
    with pytest.raises(InputError, match="every set to be scored is damaged"):
        mean_scores([sums_of(network, [a_batch(0, 0)])])


def test_a_loaders_epoch_is_scored_set_by_set(packed: Path, network: nn.Module) -> None:
    loader = Loader(packed, "train", batch_size=10, size=32, shuffle=False)
    rows, values = score_sets(network, Criterion(), loader, THRESHOLD)
    assert rows.tolist() == sorted(rows.tolist())
    assert {len(of_sets) for of_sets in values.values()} == {len(rows)} == {64}


@torch.no_grad()
def test_the_few_scores_of_validation_are_those_of_evaluation(network: nn.Module) -> None:
    batch = a_batch(3, 0)
    prediction = predict(network, batch.bg, batch.fg_bg)
    few, all_scores = (score_batch(prediction, batch, THRESHOLD, detailed=detailed) for detailed in (False, True))
    assert list(few[NETWORK]) == ["mask_iou", "mask_dice", "depth_ssim", "depth_rmse"]
    assert list(few[TRIVIAL]) == ["mask_iou", "mask_dice"]
    for who, named in few.items():
        assert all_scores[who].keys() > named.keys()
        for name, value in named.items():
            assert torch.equal(value, all_scores[who][name])


@torch.no_grad()
def test_a_mask_that_is_no_number_has_no_score(network: nn.Module) -> None:
    batch = a_batch(2, 0)
    prediction = predict(network, batch.bg, batch.fg_bg)
    prediction.mask_logits[1, 0, 3, 3] = torch.inf
    scores = score_batch(prediction, batch, THRESHOLD)
    assert scores[NETWORK]["mask_iou"].isnan().tolist() == [False, True]
    assert not scores[TRIVIAL]["mask_iou"].isnan().any()


def test_one_mask_that_is_no_number_spoils_no_mean(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [a_batch(3, 0), a_batch(2, 1)]
    _, expected = score_sets(network, Criterion(), batches, THRESHOLD)

    def predict_nan(*arguments: Any) -> Prediction:
        prediction = predict(*arguments)
        prediction.mask_logits[1] = torch.nan
        return prediction

    monkeypatch.setattr("train.scoring.predict", predict_nan)
    rows, values = score_sets(network, Criterion(), batches, THRESHOLD)
    for name in ("mask_iou", "mask_dice"):
        wrong = np.zeros(5, bool)
        wrong[[1, 4]] = True
        assert values[name].tolist() == np.where(wrong, 0, expected[name]).tolist()
    means = mean_scores([sum_scores(rows, values)])
    assert np.isfinite(means["depth_loss"])
    for name in ("loss", "mask_loss"):  # the losses of all, and not those of the others alone
        assert np.isnan(means[name])


def test_sets_without_any_measurement_are_in_no_mean_of_depth(network: nn.Module) -> None:
    batch = a_batch(4, 0)
    valid = torch.ones(4, 1, 32, 32, dtype=torch.bool)
    valid[1] = False
    batch = replace(batch, depth_valid=valid)
    others = replace(batch, **{name: tensor[[0, 2, 3]] for name, tensor in batch.asdict().items()})
    found, expected = (mean_scores([sums_of(network, [of])]) for of in (batch, others))
    assert (found["sets"], expected["sets"]) == (4, 3)
    for name in ("depth_ssim", "depth_rmse"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5)
    assert all(np.isfinite(value) for value in found.values())
    alone = mean_scores([sums_of(network, [replace(batch, depth_valid=valid & False)])])
    assert "depth_rmse" not in alone
    assert alone["depth_loss"] == 0
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(float("nan"))
    broken = mean_scores([sums_of(network, [batch])])
    assert np.isnan(broken["depth_rmse"])  # of a network without numbers nothing is left out
