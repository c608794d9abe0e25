import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import train.trivial_baselines
from pipeline.loading.batch import Batch
from pipeline.loading.loader import Loader
from tests.samples import smooth_picture
from train.evaluate import jpeg_ceiling, round_trip
from train.trivial_baselines import MeanDepth


def column(shards: Path) -> np.ndarray:
    return np.array(np.load(shards / "index.npy")["bg"])


def plain_means(shards: Path) -> dict[int | None, Tensor]:
    """Of the training sets of each background, and under None of all."""
    depths = dict[int | None, list[Tensor]]()
    for batch in (loader := Loader(shards, "train", batch_size=1, size=32)):
        assert batch.depth is not None
        for name in (None, int(loader.key(int(batch.index)).split("_")[3])):
            depths.setdefault(name, []).append(batch.depth[0] / 255)
    return {name: torch.stack(of).mean(0) for name, of in depths.items()}


@pytest.mark.parametrize("most", [1024, 3])
def test_mean_depth_is_that_of_the_background_and_else_that_of_all(
    most: int, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.trivial_baselines, "BACKGROUNDS", most)
    backgrounds = column(packed)
    found = MeanDepth(Loader(packed, "train", batch_size=16, size=32), backgrounds)
    expected = plain_means(packed)
    assert found.sets == 64
    depth = found(torch.arange(100))
    assert depth is not None
    own = set[int]()
    for row, background in enumerate(backgrounds.tolist()):
        is_own = background in expected and torch.allclose(depth[row], expected[background], atol=1e-5)
        own |= {background} if is_own else set()
        if not is_own:
            torch.testing.assert_close(depth[row], expected[None], atol=1e-5, rtol=0)
    assert len(own) == min(most, 8)  # eight of ten backgrounds are in training


def test_no_more_training_sets_are_looked_at_than_asked_for(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.trivial_baselines, "SETS", 20)
    assert MeanDepth(Loader(packed, "train", batch_size=16, size=32), column(packed)).sets == 32  # whole batches


def test_without_depth_there_is_no_mean_depth(bare: Path) -> None:
    found = MeanDepth(Loader(bare, "train", batch_size=16, size=32, depth=False), column(bare))
    assert found.sets == 0
    assert found(torch.arange(3)) is None


def smooth(sets: int) -> Tensor:
    planes = np.stack([smooth_picture(n, channels=1).reshape(smooth_picture(n).shape[:2]) for n in range(sets)])
    return torch.from_numpy(planes)[:, None].contiguous()


@pytest.mark.parametrize("quality", [75, 90])
def test_a_round_trip_is_that_of_pillow(quality: int) -> None:
    pictures = smooth(3)
    for one, found in zip(pictures, round_trip(pictures, quality), strict=True):
        Image.fromarray(one[0].numpy()).save(file := io.BytesIO(), "JPEG", quality=quality)
        with Image.open(file) as decoded:
            errors = [np.asarray(of).astype(int) - one[0].numpy() for of in (decoded, found[0].numpy())]
        theirs, ours = (np.sqrt(np.square(error).mean()) for error in errors)
        assert ours == pytest.approx(theirs, rel=0.2)  # two encoders round coefficients alike, but for a few
        assert theirs > 0.3


def test_the_ceiling_is_below_one_and_rises_with_the_quality() -> None:
    pictures = smooth(4)
    noisy = torch.randint(0, 256, pictures.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    batch = Batch(pictures, pictures, noisy, noisy, torch.arange(4))
    low, high = (jpeg_ceiling(batch, quality) for quality in (75, 90))
    for name in ("mask_iou", "depth_ssim"):
        assert (low[name] < high[name]).all()
        assert (high[name] < 1).all()
    alone = jpeg_ceiling(Batch(pictures, pictures, noisy, None, batch.index), 75)
    assert not [name for name in alone if "depth" in name]


def test_the_mean_of_depth_with_holes_is_of_what_was_measured(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Loader(packed, "train", batch_size=16, size=32)
    batches = list(training)
    rng = torch.Generator().manual_seed(0)
    holed = list[Batch]()
    for batch in batches:
        assert batch.depth is not None
        valid = torch.rand(batch.depth.shape, generator=rng) < 0.7
        valid[..., :4, :4] = False  # nowhere
        valid[..., 4:8, :4] = (batch.index % 3 == 0)[:, None, None, None]  # on some backgrounds alone
        depth = batch.depth.clamp(min=1) * valid
        holed.append(replace(batch, depth=depth, depth_valid=valid))
    numbers = column(packed)
    monkeypatch.setattr(Loader, "__iter__", lambda _: iter(holed))
    found = MeanDepth(training, numbers)
    depths, valids = (torch.cat([getattr(of, name) for of in holed]).float() for name in ("depth", "depth_valid"))
    backgrounds = numbers[torch.cat([of.index for of in holed]).numpy()]
    mean = found(torch.arange(100))
    assert mean is not None
    anywhere = depths.sum() / valids.sum()
    of_all = torch.where(valids.sum(0) > 0, depths.sum(0) / valids.sum(0), anywhere)
    for row, number in enumerate(numbers.tolist()):
        own = torch.from_numpy(backgrounds == number)
        counts = valids[own].sum(0)
        expected = torch.where(counts > 0, depths[own].sum(0) / counts, of_all)
        torch.testing.assert_close(mean[row], expected / 255)
