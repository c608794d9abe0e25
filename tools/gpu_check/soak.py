"""Part `soak`: thousands of batches through the hardware JPEG engine, while the device is busy and nobody waits.

On Hopper GPUs nvJPEG's batched hardware decoder has run ahead of the stream that it was given (torchcodec #1634,
vision #9606): pictures were read before they were there, or written over while they were read. Here the stream that
takes pictures from DALI is kept busy, so that their copies are late, and so is the one that looks at the copies; each
picture of every batch is then compared with what it has to be, on the device.
"""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.format.depth import depth_table
from pipeline.loading.decode import DALI_LOAD, DecodeOptions, Decoder, Encoded, Table, hardware_load
from pipeline.loading.shard_reader import Store
from pipeline.workers import available_cores
from tools.gpu_check.burden import Burden
from tools.gpu_check.clock import synchronize
from tools.gpu_check.context import Context, Result

Pictures = dict[str, torch.Tensor]
"""For each part uint8 [N, 1, S, S]."""


class Plan(NamedTuple):
    """How much is done."""

    loads: tuple[float, ...]
    """Shares of the pictures that the hardware engine gets."""
    batches: int
    """Soaked, under each load."""
    batch: int
    sets: int
    """Different ones."""
    paced: int
    """Batches that are timed, under each load, with nothing else to do."""
    prefetch: int


GPU = Plan((0.0, DALI_LOAD, 1.0), 2000, 128, 4096, 200, 4)
CPU = Plan((0.0,), 12, 16, 64, 4, 2)
# Levels of 255 from the CPU's pixels, beyond which a picture is another one or broken. Engines round by one or two, and
# a depth table makes as much more of it as it is steep.
TOLERANCE = 6
AHEAD = 8  # batches that the host is ahead of the device, as a training loop is
BURST = 4  # a late batch is as late as so many take to be decoded


class Verdict(NamedTuple):
    """What came of one load."""

    batches: int
    pictures: int
    inexact: int
    """Pictures that have not the bits that any engine gives of them on a quiet device."""
    largest: int
    """Difference from the CPU's pixels, levels of 255."""
    wrong: int
    """Pictures of which a pixel differs by more than is allowed."""
    wrong_batches: int
    sets_per_sec: float
    """Without the burden."""


def measure(context: Context) -> Result:
    """Soak under each load; the fastest that is never wrong is recommended, and the default has to be right."""
    plan, started_sec = GPU if context.on_gpu else CPU, time.perf_counter()
    soak = Soak(context, plan)
    verdicts = dict[float, Verdict]()
    for number, load in enumerate(plan.loads):
        left_sec = 0.9 * context.seconds - (time.perf_counter() - started_sec)
        verdicts[load] = soak.under(load, left_sec / (len(plan.loads) - number))
        context.say(f"load {load:g}: {verdicts[load]}")
    return judged(verdicts, plan, context.on_gpu, hardware_load(None, context.flag))


def judged(verdicts: Mapping[float, Verdict], plan: Plan, on_gpu: bool, default: float) -> Result:
    """The table; failures where the default is wrong, or CUDA alone, or all of them."""
    titles = ["batches", "pictures", "not the same bits", "largest difference", "wrong pictures", "sets/s"]
    rows = {
        f"hw_decoder_load {load:g}": [
            f"{v.batches:,}", f"{v.pictures:,}", f"{v.inexact:,}", str(v.largest), f"{v.wrong:,}",
            f"{v.sets_per_sec:,.0f}",
        ]
        for load, v in verdicts.items()
    }  # fmt: skip
    right = {load: verdict for load, verdict in verdicts.items() if not verdict.wrong}
    notes, failures = list[str](), list[str]()
    figures: dict[str, Any] = {f"{load:g}": verdict._asdict() for load, verdict in verdicts.items()}
    if right:
        fastest = max(right, key=lambda load: right[load].sets_per_sec)
        figures["recommended"] = fastest
        notes.append(f"hw_decoder_load {fastest:g} is the fastest that was never wrong; the default is {default:g}")
    failures += [
        f"hw_decoder_load {load:g}: {v.wrong:,} pictures in {v.wrong_batches:,} of {v.batches:,} batches are wrong"
        for load, v in verdicts.items()
        if v.wrong and load in (0.0, default)
    ]
    notes += [f"hw_decoder_load {load:g} is WRONG: do not use it" for load, v in verdicts.items() if v.wrong]
    notes += [
        f"hw_decoder_load {load:g}: there was time for {v.batches:,} of {plan.batches:,} batches"
        for load, v in verdicts.items()
        if v.batches < plan.batches
    ]
    notes.append(f"a picture is wrong where it is more than {TOLERANCE} levels of 255 from the CPU's")
    if not on_gpu:
        notes.append("hw_decoder_load 0.65 and 1, busy streams: skipped: no GPU")
    return Result(figures, titles, rows, notes, failures)


class Soak:
    """The files of some sets, and their pixels by every engine, on the device."""

    def __init__(self, context: Context, plan: Plan) -> None:
        self._context, self._plan = context, plan
        store = Store.open(context.shards)
        rows = np.random.default_rng(0).permutation(len(store.index))[: plan.sets]
        self._files = [store.read(row) for row in rows.tolist()]
        manifest = store.manifest
        self._tables: dict[str, Table] = dict.fromkeys(store.parts)
        self._tables["depth"] = depth_table(manifest.depth_encoding, manifest.depth_near)
        self._allowed = {part: TOLERANCE * steepest(table) for part, table in self._tables.items()}
        self._pixels = self._quietly("cpu", 0.0)
        self._bits = [self._quietly(context.flag, load) for load in plan.loads]

    def under(self, load: float, seconds: float) -> Verdict:
        """Soak under one load, for so long at most."""
        plan = self._plan
        decoder = self._decoder(self._context.flag, load, plan.prefetch)
        generator = np.random.default_rng(1)
        places = [generator.integers(0, len(self._files), plan.batch) for _ in range(plan.batches)]
        sets_per_sec = self._pace(load, places[: plan.paced])
        burden = Burden(self._context.device, BURST * plan.batch / sets_per_sec)
        found, queued = list[torch.Tensor](), deque[torch.cuda.Event]()
        ends_sec = time.perf_counter() + seconds
        with burden.taking():
            batches = decoder.decode(map(self._encoded, places))
            for pictures, wanted in zip(batches, places, strict=False):
                with burden.looking(pictures.values()):
                    found.append(self.differences(pictures, wanted))
                if event := burden.event():
                    queued.append(event)
                if len(queued) > AHEAD:
                    queued.popleft().synchronize()
                if time.perf_counter() > ends_sec:
                    break
            batches.close()
        per_batch = torch.stack(found).cpu().numpy()
        inexact, largest, wrong = per_batch[:, 0].sum(), per_batch[:, 1].max(), per_batch[:, 2]
        pictures_seen = len(found) * plan.batch * len(self._tables)
        return Verdict(len(found), pictures_seen, int(inexact), int(largest), int(wrong.sum()),
                       int((wrong > 0).sum()), sets_per_sec)  # fmt: skip

    def differences(self, pictures: Pictures, places: NDArray[np.int64]) -> torch.Tensor:
        """Of a batch of the sets at these places: pictures without the bits of any engine, largest difference, wrong.

        int64 [3] on the device, which the host does not wait for.
        """
        device = self._context.device
        index = torch.from_numpy(places)
        index = index.pin_memory().to(device, non_blocking=True) if self._context.on_gpu else index
        inexact = largest = wrong = torch.zeros((), dtype=torch.int64, device=device)
        for part, picture in pictures.items():
            apart = _apart(picture, self._pixels[part][index])
            exact = torch.stack([_apart(picture, bits[part][index]) == 0 for bits in self._bits]).any(0)
            inexact = inexact + (~exact).sum()
            largest = torch.maximum(largest, apart.max())
            wrong = wrong + (apart > self._allowed[part]).sum()
        return torch.stack([inexact, largest, wrong])

    def _quietly(self, device: str, load: float) -> Pictures:
        """All sets, one batch after the other on an idle device."""
        batches = list[Pictures]()
        every = np.array_split(np.arange(len(self._files)), -(-len(self._files) // self._plan.batch))
        for pictures in self._decoder(device, load, 1).decode(map(self._encoded, every)):
            synchronize(self._context.device)
            batches.append({part: picture.to(self._context.device) for part, picture in pictures.items()})
        return {part: torch.cat([batch[part] for batch in batches]) for part in self._tables}

    def _pace(self, load: float, places: Sequence[NDArray[np.int64]]) -> float:
        """Sets a second with nothing else to do, once what comes first has come."""
        decoder = self._decoder(self._context.flag, load, self._plan.prefetch)
        list(decoder.decode(map(self._encoded, places[: 2 * self._plan.prefetch])))
        synchronize(self._context.device)
        started_sec = time.perf_counter()
        sets = sum(len(pictures["mask"]) for pictures in decoder.decode(map(self._encoded, places)))
        synchronize(self._context.device)
        return sets / (time.perf_counter() - started_sec)

    def _decoder(self, device: str, load: float, prefetch: int) -> Decoder:
        options = DecodeOptions(self._plan.batch, self._context.size, device, available_cores(), prefetch, load)
        return Decoder(self._tables, options)

    def _encoded(self, places: NDArray[np.int64]) -> Encoded:
        return [list(part) for part in zip(*(self._files[place] for place in places.tolist()), strict=True)]


def steepest(table: Table) -> int:
    """By how much a table changes at most from one gray level to the next; 1 where there is none."""
    return 1 if table is None else max(1, int(np.abs(np.diff(table.astype(int))).max()))


def _apart(pictures: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """The largest difference in each picture, int64 [N]."""
    return (pictures.short() - others.short()).abs().flatten(1).amax(1).long()
