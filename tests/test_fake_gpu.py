"""On a GPU, no step waits for the device or mixes devices: shown without a GPU, and that it would be noticed."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    unset_fake_temporarily,
)

import train.train_step
from pipeline.loading.augment import OFF, Augmentation, Augmenter
from pipeline.loading.batch import Batch
from pipeline.loading.buffers import Gatherer
from pipeline.loading.decode_planes import PlaneDecoder
from pipeline.loading.loader import Loader
from pipeline.loading.sample_cache import SampleCache
from tests.fake_gpu import CUDA, Waits, fake_gpu
from train.config import Config
from train.distributed import SINGLE
from train.logging import Meter
from train.losses import RECIPES, Criterion
from train.networks import build_network
from train.scoring import NETWORK, TRIVIAL, predict, score_batch
from train.train_step import Learner
from train.trivial_baselines import MeanDepth
from train.tta import MirrorAveraged

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there: the tests marked gpu ask it itself"),
    pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor"),  # PyTorch's own, in copy.deepcopy
]
SETS, SIZE, PARTS = 4, 32, ("fg_bg", "mask", "depth")


def pictures(sets: int = SETS) -> Tensor:
    return torch.empty(sets, 1, SIZE, SIZE, dtype=torch.uint8, device=CUDA)


def a_batch(sets: int = SETS) -> Batch:
    bg, fg_bg, mask, depth = (pictures(sets) for _ in range(4))
    return Batch(bg, fg_bg, mask, depth, torch.arange(sets, device=CUDA))


def with_holes(batch: Batch) -> Batch:
    assert batch.depth is not None
    return replace(batch, depth_valid=batch.depth > 0)


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Learner]:
    """Makes a learner on the GPU that is not there."""

    def with_values(*how: Any) -> nn.Module:
        with unset_fake_temporarily():  # parameters without values can go to no other device
            return build_network(*how)

    monkeypatch.setattr(train.train_step, "build_network", with_values)

    def build(**settings: Any) -> Learner:
        values: dict[str, Any] = {"model": "unet-4", "compile": "off", "precision": "float32"}
        return Learner(Config(Path(), Path(), **(values | settings)), CUDA)

    return build


@pytest.mark.parametrize(
    "settings",
    [
        *({"loss": loss} for loss in RECIPES),
        {"model": "net"},
        {"model": "convgen"},
        {"clip": 0.0, "ema": 0.0},
        {"depth": False, "schedule": "one-cycle"},
    ],
    ids=lambda settings: " ".join(map(str, settings.values())),
)
def test_no_step_waits_or_mixes_devices(settings: dict[str, Any], build: Callable[..., Learner]) -> None:
    with fake_gpu() as gpu:
        learner, meter = build(**settings), Meter(CUDA, SINGLE)
        with gpu.without_waiting():
            for sets in (SETS, 1):
                for batch in (a_batch(sets), with_holes(a_batch(sets))):
                    step = learner.train_step(batch, 0.5, sets)
                    meter.add(step, sets, 0.0)
    for told in (*step.losses.values(), step.grad_norm, meter._sums):
        assert told.device == CUDA
        assert told.dtype == torch.float32
    state = learner.optimizer.state[learner.optimizer.param_groups[0]["params"][0]]
    assert {value.device for value in state.values()} == {CUDA}


def test_no_step_waits_to_know_whether_float16_overflowed(
    build: Callable[..., Learner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(train.train_step, "autocast", lambda *_: nullcontext())  # float32 stands for float16
    with fake_gpu() as gpu:
        learner, meter = build(precision="fp16"), Meter(CUDA, SINGLE)
        with gpu.without_waiting():
            for _ in range(2):
                step = learner.train_step(a_batch(), 0.5, SETS)
                meter.add(step, SETS, 0.0)
        assert step.skipped.device == meter._sums.device == CUDA
        with pytest.raises(DataDependentOutputException):
            _ = learner.loss_scale


FAULTS: dict[str, tuple[Callable[[Tensor], Any], type[Exception] | tuple[type[Exception], ...]]] = {
    "a number": (lambda x: x.sum().item(), DataDependentOutputException),
    "a decision": (lambda x: bool(x.sum() > 0), DataDependentOutputException),
    "some pixels": (lambda x: x[x > 0.5], (Waits, DynamicOutputShapeException)),
    "a search": (lambda x: x.flatten().nonzero(), DynamicOutputShapeException),
    "some pixels changed": (lambda x: x.clone().index_put_((x > 0.5,), x[0]), Waits),
    "a tensor of the CPU": (lambda x: x + torch.ones(len(x), 1, 1, 1), RuntimeError),
    "an index of the CPU": (lambda x: x[torch.arange(len(x))], Waits),
    "a copy to the CPU": (lambda x: x.cpu(), Waits),
    "numbers": (lambda x: torch.tensor([0.5, 1.5], device=x.device), Waits),
    "a copy that is not queued": (lambda x: torch.ones(2).pin_memory().to(x.device), Waits),
    "a copy that is not pinned": (lambda x: torch.ones(2).to(x.device, non_blocking=True), Waits),
    "a copy into memory that is not pinned": (lambda x: torch.ones(2).copy_(x.flatten()[:2], non_blocking=True), Waits),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_step_that_waits_or_mixes_devices_fails(fault: str, build: Callable[..., Learner]) -> None:
    commit, error = FAULTS[fault]
    with fake_gpu() as gpu:
        learner = build()
        sound = learner.criterion.mask_parts["mask_bce"]
        learner.criterion.mask_parts["mask_bce"] = lambda found, mask: (commit(mask), sound(found, mask))[1]
        with gpu.without_waiting(), pytest.raises(error):
            learner.train_step(a_batch(), 0.5, SETS)


@torch.no_grad()
def test_what_does_not_wait_is_let_pass() -> None:
    with fake_gpu() as gpu, gpu.without_waiting():
        x = torch.rand(3, 4, device=CUDA)
        x[x > 0.5] = 0.0  # a number
        assert x.is_cuda
        assert (torch.where(x > 0, 1.0, x) + torch.ones(())).device == CUDA  # numbers
        assert torch.from_numpy(np.ones(2)).pin_memory().to(CUDA, non_blocking=True).device == CUDA
        pinned = torch.empty(2, 3, 4, pin_memory=True)
        assert pinned[1].to(CUDA, non_blocking=True).device == CUDA
        assert pinned[0].copy_(x, non_blocking=True).device.type == "cpu"


@pytest.mark.parametrize("recipe", [Augmentation(), *(Augmentation(**(OFF | {name: 0.5})) for name in OFF)])
@torch.no_grad()
def test_augmentation_does_not_wait(recipe: Augmentation) -> None:
    with fake_gpu() as gpu, gpu.without_waiting():
        batch = Augmenter(recipe, 5, CUDA)(a_batch(), 3)
        holed = Augmenter(recipe, 5, CUDA)(with_holes(a_batch()), 3)
    assert holed.depth_valid is not None
    assert (holed.depth_valid.device, holed.depth_valid.dtype) == (CUDA, torch.bool)
    assert {(part.device, part.dtype) for name, part in batch.asdict().items() if name != "index"} == {
        (CUDA, torch.uint8)
    }
    assert batch.bg.shape == (SETS, 1, SIZE, SIZE)


class PinnedGatherer(Gatherer):
    """Gathers nothing, into memory that it would gather into."""

    def gather(self, sources: Sequence[Tensor], rows: NDArray[np.int64], *, pinned: bool = False) -> Tensor:
        return torch.empty(len(sources), len(rows), *sources[0].shape[1:], dtype=torch.uint8, pin_memory=pinned)


@pytest.mark.parametrize("where", ["device", "host"])
@torch.no_grad()
def test_what_stays_is_kept_and_gathered_without_a_wait(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SampleCache, "_free_bytes", lambda _: {where: 10**9})
    waited = list[str]()
    event = type("Event", (), {"synchronize": lambda _: waited.append("for what was queued a batch ago")})
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: type("S", (), {"record_event": lambda _: event()})())
    with fake_gpu() as gpu:
        resident = SampleCache(40, 40, PARTS, SIZE, CUDA, where, gatherer=PinnedGatherer())
        with gpu.without_waiting():
            resident.keep(np.arange(3), dict.fromkeys(PARTS, pictures(3)))
            resident.keep(np.arange(1, 5), dict.fromkeys(PARTS, pictures(4)))  # some are kept already
            taken = resident.take(resident.slots(np.arange(3, 7)), dict.fromkeys(PARTS, pictures(2)))
    assert (resident.where, resident.kept, len(waited)) == (where, 5, 2 * (where == "host"))
    assert {(part.device, part.shape) for part in taken.values()} == {(CUDA, (4, 1, SIZE, SIZE))}


@pytest.mark.parametrize("codec", ["jpeg", "planes"])
@torch.no_grad()
def test_batches_are_put_together_without_a_wait(codec: str, packed: Path, planes: Path) -> None:
    loader = Loader(packed if codec == "jpeg" else planes, batch_size=SETS, size=16, threads=1)
    collator, rows = loader._stages.collator, loader.rows()[:SETS]
    records = loader.index[rows]
    collator.device = CUDA
    with fake_gpu() as gpu:
        shape = collator.backgrounds.pictures.shape
        collator.backgrounds.pictures = torch.empty(shape, dtype=torch.uint8, device=CUDA)
        with gpu.without_waiting():
            parts = {part: torch.empty(SETS, 1, 16, 16, dtype=torch.uint8, device=CUDA) for part in PARTS}
            batch = collator.collate(rows, records, parts, Gatherer())
    assert {part.device for part in batch.asdict().values()} == {CUDA}
    assert batch.bg.shape == batch.fg_bg.shape == (SETS, 1, 16, 16)


@torch.no_grad()
def test_inflated_planes_go_to_the_device_without_a_wait(planes: Path) -> None:
    options = Loader(planes, batch_size=SETS, size=16, threads=1)._opened.options
    decoder = PlaneDecoder(PARTS, len(PARTS), options)
    decoder._device = CUDA
    with fake_gpu() as gpu, gpu.without_waiting():
        parts = decoder._finish(torch.empty(len(PARTS), SETS, 16, 16, dtype=torch.uint8, pin_memory=True), [])
    assert {(part.device, part.dtype, part.shape) for part in parts.values()} == {
        (CUDA, torch.uint8, (SETS, 1, 16, 16))
    }


@torch.no_grad()
def test_scores_do_not_wait(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Loader(packed, batch_size=SETS, size=SIZE, threads=1)
    mean_depth, network = MeanDepth(training, np.array(training.index["bg"])), build_network("unet-4")
    with fake_gpu() as gpu:
        network.to(CUDA, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for name in ("_sums", "_place_of"):
            monkeypatch.setattr(mean_depth, name, getattr(mean_depth, name).to(CUDA))
        criterion, batch = Criterion().to(CUDA), a_batch()
        with gpu.without_waiting():
            predict(MirrorAveraged(network), batch.bg, batch.fg_bg, "float32")
            prediction = predict(network, batch.bg, batch.fg_bg, "float32")
            validated = score_batch(prediction, batch, 20, criterion=criterion)
            scores = score_batch(prediction, batch, 20, mean_depth=mean_depth, detailed=True)
            alone = score_batch(prediction, replace(batch, depth=None), 20, detailed=True)
            score_batch(prediction, with_holes(batch), 20, criterion=criterion, detailed=True)
    assert validated[NETWORK].keys() > {"mask_iou", "depth_ssim", "depth_rmse", "loss"}
    assert validated[TRIVIAL].keys() == {"mask_iou", "mask_dice"}
    assert scores[NETWORK].keys() == scores[TRIVIAL].keys() > alone[NETWORK].keys()
    told = [value for of in (validated, scores) for named in of.values() for value in named.values()]
    assert {(score.device, score.dtype, score.shape) for score in told} == {(CUDA, torch.float32, (SETS,))}
