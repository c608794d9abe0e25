"""Parts `picture`, `parity` and `soak`: the GPU gives what the CPU gives, and when it is busy, too."""

import functools
import io
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.gpu.plan import JPEG, PLANES
from benchmarks.gpu.process import Context
from benchmarks.gpu.record import Findings, Record
from benchmarks.harness import MEAN_TOLERANCE, P999_TOLERANCE
from pipeline.format.depth import depth_table
from pipeline.format.images import decode_gray
from pipeline.format.manifest import Manifest
from pipeline.format.sample import PARTS
from pipeline.loading.batch import Batch
from pipeline.loading.decode import DecodeOptions, Decoder, Encoded, Table, Undecodable, depth_levels
from pipeline.loading.loader import Loader
from pipeline.loading.shard_reader import ShardReader
from pipeline.workers import available_cores
from tools.measure import synchronize

Levels = NDArray[np.int64]
LOADS = (0.0, 0.65, 1.0)  # of the hardware JPEG engine
SETS = 256  # compared whole
COPIES = 32  # of each picture in a batch: at 0.65 some go to the engine, some do not
# Of 255 levels, where the same graph runs: decoders and resize kernels round differently, by a level or two each.
DEVICES_DIFFER = 3
CPU = "CPU"
FIRST = ("gray", "colour 4:2:0", "progressive 4:2:0", "PNG, colour")
TURNED = 0x0112  # the EXIF field for the orientation; 6: turn by 90 degrees to view


def sample_files() -> Mapping[str, bytes]:
    """Encoded pictures in every form in which sets may hold them; the same bytes at every call."""
    colour, exif = _scene(224, 224), Image.Exif()
    gray = np.asarray(Image.fromarray(colour).convert("L"))
    exif[TURNED] = 6
    return {
        "gray": _encoded(gray, quality=90),
        "colour 4:4:4": _encoded(colour, quality=90, subsampling="4:4:4"),
        "colour 4:2:2": _encoded(colour, quality=90, subsampling="4:2:2"),
        "colour 4:2:0": _encoded(colour, quality=90, subsampling="4:2:0"),
        "colour, not as YCbCr": _encoded(colour, quality=90, keep_rgb=True),
        "quality 30, 4:2:0": _encoded(colour, quality=30, subsampling="4:2:0"),
        "progressive 4:2:0": _encoded(colour, quality=90, subsampling="4:2:0", progressive=True),
        "gray, progressive": _encoded(gray, quality=90, progressive=True),
        "restart markers": _encoded(colour, quality=90, subsampling="4:2:0", restart_marker_rows=1),
        "odd 157 x 223, 4:2:0": _encoded(_scene(157, 223, 1), quality=90, subsampling="4:2:0"),
        "odd 33 x 47, 4:4:4": _encoded(_scene(33, 47, 2), quality=90, subsampling="4:4:4"),
        "960 x 1280, 4:2:0": _encoded(_scene(960, 1280, 3), quality=90, subsampling="4:2:0"),
        "EXIF: turned": _encoded(_scene(160, 224, 4), quality=90, exif=exif),
        "PNG, gray": _encoded(gray, "PNG"),
        "PNG, colour": _encoded(colour, "PNG"),
        "PNG, 16 bits": _encoded((gray.astype(np.uint16) * 256 + gray[::-1]).astype(np.uint16), "PNG"),
    }


def _scene(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A picture with slopes, edges and texture, as photographs have them; uint8 [height, width, 3]."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(float)
    y, x = y / height, x / width
    waves = [np.sin(generator.uniform(1, 9) * x + generator.uniform(1, 9) * y + generator.uniform(0, 6)) for _ in "RGB"]
    picture = 127.5 + 80 * np.stack(waves, axis=2)
    for _ in range(6):
        (top, left), side = generator.uniform(0, 0.8, 2), generator.uniform(0.05, 0.3)
        picture[(y >= top) & (y < top + side) & (x >= left) & (x < left + side)] = generator.uniform(0, 255, 3)
    picture += generator.normal(0, 6, (height, width, 1))
    return np.rint(np.clip(picture, 0, 255)).astype(np.uint8)


def _encoded(picture: NDArray[np.uint8] | NDArray[np.uint16], kind: str = "JPEG", **how: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **how)
    return buffer.getvalue()


def picture(context: Context, found: Findings) -> None:
    """A few pictures through the mixed decoder: does it work here at all?"""
    compare_pictures(context, found, FIRST)


def parity(context: Context, found: Findings) -> None:
    """Pictures of every kind, and whole sets of each source; without a GPU, the CPU with Pillow and with itself.

    What is decoded, resident or resumed on a GPU to the same bits, is looked at by the tests marked `gpu`.
    """
    compare_pictures(context, found, tuple(sample_files()))
    expected, rows = picked_sets(context, JPEG, "cpu", 0.0, None)
    for kind, load in [(JPEG, load) for load in (LOADS if context.on_gpu else (0.0,))] + [(PLANES, 0.0)]:
        name = f"{len(rows)} sets of {kind}{f', load {load:g}' if kind == JPEG else ''}"
        if name not in found.rows and not (kind == PLANES and context.given):
            levels = apart(picked_sets(context, kind, context.flag, load, rows)[0], expected)
            # A depth table makes as much more of what devices round as it is steep; planes are what the CPU decoded.
            manifest = Manifest.load(context.folder(JPEG))
            steep = steepest(depth_table(manifest.depth_encoding, manifest.depth_near))
            most = 0 if kind == PLANES else DEVICES_DIFFER * steep
            failures = [f"{levels} levels from the CPU's of JPEG, more than {most}"] if levels > most else []
            found.row(name, {"levels": levels}, [f"{levels} from the CPU's of JPEG"], failures)
    if context.given:  # a decoder of another machine may round otherwise
        found.note("planes as the CPU's of JPEG: skipped: --planes may have been packed on another machine")


def picked_sets(
    context: Context, kind: str, device: str, load: float, keys: Sequence[str] | None
) -> tuple[Batch, Sequence[str]]:
    """The sets of these keys, or the first ones, from one source on one device; and their keys."""
    loader = Loader(
        context.folder(kind), "all", batch_size=SETS, size=context.size, device=device, hw_decoder_load=load
    )
    rows = {loader.key(row): row for row in loader.rows().tolist()}
    keys = keys or list(rows)[:SETS]
    return loader.pick([rows[key] for key in keys]), keys


def apart(one: Batch, other: Batch) -> int:
    """The largest difference of any pixel of two batches of the same sets, on any device."""
    pairs = [(getattr(one, part).cpu().int(), getattr(other, part).cpu().int()) for part in ("bg", *PARTS)]
    return max(int((picture - of_other).abs().max()) for picture, of_other in pairs)


def compare_pictures(context: Context, found: Findings, names: Sequence[str]) -> None:
    """A row for each of these pictures: the CPU beside Pillow, the GPU under each load beside the CPU."""
    asked = {CPU: ("cpu", 0.0)} | ({f"GPU, load {load:g}": ("gpu", load) for load in LOADS} if context.on_gpu else {})
    decoders = {who: Decoder({"x": None}, DecodeOptions(COPIES, context.size, device, 2, 1, load))
                for who, (device, load) in asked.items()}  # fmt: skip
    if not context.on_gpu:
        found.note("GPU against CPU: skipped: no GPU")
    found.columns = ["CPU - Pillow: largest / mean", *(f"{who} - CPU" for who in decoders if who != CPU)]
    found.note('levels of 255; "load" is the hardware JPEG engine\'s share of the pictures')
    for name, content in sample_files().items():
        if name in names and name not in found.rows:
            differences, wrong = compare(decoders, content, context.size)
            told = [f"{d['max']:.0f} / {d['mean']:.2f}" if (d := differences.get(who)) else "-" for who in decoders]
            found.row(name, differences, told, wrong)


def compare(
    decoders: Mapping[str, Decoder], content: bytes, size: int
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """How far one picture is from Pillow's on the CPU, and from the CPU's elsewhere; and a line for each that is wrong.

    `decoders` begin with the CPU's.
    """
    gray = Image.fromarray(decode_gray(content)).resize((size, size), Image.Resampling.BILINEAR)
    differences, wrong, expected = dict[str, dict[str, float]](), list[str](), np.asarray(gray).astype(np.int64)
    for who, decoder in decoders.items():
        try:
            [batch] = decoder.decode(iter([[[np.frombuffer(content, np.uint8)] * COPIES]]))
        except (Undecodable, RuntimeError) as error:  # the others are to be tried all the same
            wrong.append(f"{who} cannot decode it: {str(error)[:300]}")
            continue
        levels: Levels = batch["x"][:, 0].cpu().numpy().astype(np.int64)
        difference = np.abs(levels - expected)
        largest, mean, p999 = (
            float(of) for of in (difference.max(), difference.mean(), np.quantile(difference, 0.999))
        )
        differences[who] = {"max": largest, "mean": mean, "p999": p999}
        if who == CPU:
            if mean > MEAN_TOLERANCE or p999 > P999_TOLERANCE:
                wrong.append(f"CPU and Pillow are {mean:.2f} levels apart in the mean, {p999:.0f} in 99.9 % of pixels")
            expected = levels[0]
        elif largest > DEVICES_DIFFER:
            wrong.append(f"{who} and the CPU are {largest:.0f} levels apart, more than {DEVICES_DIFFER}")
    return differences, wrong


class SoakPlan(NamedTuple):
    """How much is soaked."""

    loads: tuple[float, ...]
    """Shares of the pictures that the hardware engine gets."""
    batches: int
    """Under each load."""
    least: int
    """Batches of which a load has to be right before it is recommended."""
    batch: int
    sets: int
    """Different ones."""
    prefetch: int


SOAKED, SOAKED_SMALL = SoakPlan(LOADS, 2000, 200, 128, 4096, 4), SoakPlan((0.0,), 12, 12, 16, 64, 2)
# Levels of 255 from the CPU's pixels, beyond which a picture is another one or broken. Engines round by one or two, and
# a depth table makes as much more of it as it is steep.
TOLERANCE = 6
AHEAD = 8  # batches that the host is ahead of the device, as a training loop is
SIDES, LONGEST_SEC = (
    (16384, 8192, 4096),
    0.03,
)  # of the other work's matrices: about 10 ms on an H100, on others the like
SHARE = 2  # one batch of so many comes after other work
ENGINE = 0.65  # the load that is recommended where the engine is right


def soak(context: Context, found: Findings) -> None:
    """Thousands of batches under each load while the device is busy and nobody waits; every picture is compared.

    On Hopper GPUs nvJPEG's hardware engine ignores the order of the stream that it is given (torchcodec #1634): it
    writes into memory that work queued before still reads. Such work is late here by other work, of
    some 10 ms, which keeps all of the device's cores; the host waits for none of it.
    """
    plan, default = SOAKED if context.on_gpu else SOAKED_SMALL, default_load(context)
    found.columns = ["batches", "pictures", "largest difference", "wrong pictures", "batches with one", "batches/s"]
    soaking = Soak(context, plan)
    for number, load in enumerate(plan.loads):
        name = f"hw_decoder_load {load:g}"
        if name not in found.rows:
            figures = soaking.under(load, 0.9 * context.left_sec / (len(plan.loads) - number))
            bad = [f"{figures['wrong']:,.0f} pictures are wrong"] if figures["wrong"] and load in (0.0, default) else []
            found.row(name, figures, [f"{number:,.0f}" for number in figures.values()], bad)
            found.figures["recommended"] = recommended(found.rows, plan)
    wrong = [name for name, row in found.rows.items() if row["figures"]["wrong"]]
    found.note(f"{' and '.join(wrong)}: WRONG, do not use" if wrong else "no picture was wrong")
    found.note(f"recommended from now on: hw_decoder_load {found.figures['recommended']:g}; the default: {default:g}")
    found.note(f"a picture is wrong where it is more than {TOLERANCE} levels of 255 from the CPU's")
    other_work = f"one batch of {SHARE} comes after other work of {1000 * soaking.other_work_sec:.1f} ms"
    found.note(other_work if context.on_gpu else "hw_decoder_load 0.65 and 1, busy streams: skipped: no GPU")


def recommended(rows: Mapping[str, Record], plan: SoakPlan) -> float:
    """ENGINE where no load was wrong, on `plan.least` batches or more each; else 0.

    An engine that was wrong under one share of the pictures was lucky under another.
    """
    right = [row for row in rows.values() if not row["figures"]["wrong"] and row["figures"]["batches"] >= plan.least]
    return ENGINE if ENGINE in plan.loads and len(right) == len(plan.loads) else 0.0


def default_load(context: Context) -> float:
    """What is decoded with where nothing is asked for: on Hopper, whose engine is known to race, CUDA alone."""
    fixed: float | None = DecodeOptions.hw_decoder_load
    if fixed is not None:
        return fixed
    return 0.0 if context.on_gpu and torch.cuda.get_device_capability(context.device)[0] == 9 else 0.65


class Soak:
    """The files of some sets, and what they have to be: their pixels by the CPU, on the device."""

    def __init__(self, context: Context, plan: SoakPlan) -> None:
        self._context, self._plan, self._device = context, plan, context.device
        store = ShardReader.open(context.folder(JPEG))
        rows = np.random.default_rng(0).permutation(len(store.index))[: plan.sets]
        self._files = [store.read(row) for row in rows.tolist()]
        self._tables: dict[str, Table] = dict.fromkeys(store.parts)
        self._tables["depth"] = depth_levels(store.manifest.depth_encoding, store.manifest.depth_near)
        self._allowed = {part: TOLERANCE * steepest(table) for part, table in self._tables.items()}
        every = np.array_split(np.arange(len(self._files)), -(-len(self._files) // plan.batch))
        quiet = list(self._decoder("cpu", 0.0).decode(map(self._encoded, every)))
        self.pixels = {part: torch.cat([batch[part] for batch in quiet]).to(self._device) for part in self._tables}
        generator = np.random.default_rng(1)
        self._places = generator.integers(0, len(self._files), (plan.batches, plan.batch))
        self._late = generator.integers(0, SHARE, plan.batches) == 0
        self.other_work_sec, self._work = self._new_work() if context.on_gpu else (0.0, lambda: None)

    def under(self, load: float, seconds: float) -> dict[str, float]:
        """Soak under one load, for so long at most: the figures, in the order of the table."""
        ends_sec, stream = time.perf_counter() + seconds, None
        indices = torch.from_numpy(self._places).to(self._device)
        batches = self._decoder(self._context.flag, load).decode(map(self._encoded, self._places))
        found, queued = list[torch.Tensor](), deque[torch.cuda.Event]()
        if self._context.on_gpu:
            stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        synchronize()
        started_sec = time.perf_counter()
        with torch.cuda.stream(stream) if stream else nullcontext(), closing(batches):
            for index, is_late in zip(indices, self._late, strict=True):
                if is_late:
                    self._work()  # the copies of the batch, and the comparison, are queued behind it
                found.append(self.differences(next(batches), index))
                if stream:
                    queued.append(stream.record_event())
                if len(queued) > AHEAD:
                    queued.popleft().synchronize()
                if time.perf_counter() > ends_sec:
                    break
            synchronize()
        rate = len(found) / (time.perf_counter() - started_sec)
        largest, wrong = torch.stack(found).cpu().numpy().T
        pictures = len(found) * self._plan.batch * len(self._tables)
        return {"batches": len(found), "pictures": pictures, "largest": int(largest.max()), "wrong": int(wrong.sum()),
                "wrong_batches": int((wrong > 0).sum()), "batches_per_sec": rate}  # fmt: skip

    def differences(self, pictures: Mapping[str, torch.Tensor], index: torch.Tensor) -> torch.Tensor:
        """Of a batch of the sets at these places the largest difference from what it has to be, and the wrong pictures.

        int64 [2] on the device, which the host does not wait for.
        """
        largest = wrong = torch.zeros((), dtype=torch.int64, device=self._device)
        for part, decoded in pictures.items():
            per_sample = (decoded.short() - self.pixels[part][index].short()).abs().flatten(1).amax(1).long()
            largest, wrong = torch.maximum(largest, per_sample.max()), wrong + (per_sample > self._allowed[part]).sum()
        return torch.stack([largest, wrong])

    def _new_work(self) -> tuple[float, Callable[[], object]]:
        """Work that keeps all of the GPU's cores for some 10 ms, and what it takes."""
        for side in SIDES:
            matrix = torch.randn(side, side, device=self._device, dtype=torch.bfloat16)
            multiply = functools.partial(torch.mm, matrix, matrix, out=torch.empty_like(matrix))
            multiply()
            synchronize()
            started_sec = time.perf_counter()
            multiply()
            synchronize()
            took_sec = time.perf_counter() - started_sec
            if took_sec < LONGEST_SEC:
                break
        return took_sec, multiply

    def _decoder(self, device: str, load: float) -> Decoder:
        plan, size = self._plan, self._context.size
        return Decoder(self._tables, DecodeOptions(plan.batch, size, device, available_cores(), plan.prefetch, load))

    def _encoded(self, places: NDArray[np.int64]) -> Encoded:
        """Copies, as a reader's bytes are: what is let go of too early becomes another's."""
        sets = [self._files[place] for place in places.tolist()]
        return [[file.copy() for file in part] for part in zip(*sets, strict=True)]


def steepest(table: Table) -> int:
    """By how much a table changes at most from one gray level to the next; 1 where it changes none."""
    return max(1, int(np.abs(np.diff(table.astype(int))).max())) if isinstance(table, np.ndarray) else 1
