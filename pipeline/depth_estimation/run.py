"""Run of a depth model: overlays -> depth maps. The network is kept busy.

Pictures are decoded before it asks for them, depth maps encoded and saved after it, in threads with bounded queues.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from pipeline.depth_estimation.model import DepthModel, DepthModelSettings
from pipeline.errors import InputError, Problem
from pipeline.format.images import BadImage, Picture, as_stored, decode_rgb, encode_gray, image_format, jpeg_size
from pipeline.parts import PartDone
from pipeline.workers import available_cores, drawn_ahead

PREPARED_BATCHES, UNSAVED_BATCHES = 3, 3  # at most, before and after the network
Item = TypeVar("Item")
Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class EstimateOptions:
    """How to make depth maps. Raises `InputError` for a value out of range."""

    quality: int = 90
    """Of the JPEG files, 1 to 100."""
    skip_bad: bool = False
    """Leave an overlay that does not decode without depth; else it stops the run."""
    workers: int = field(default_factory=available_cores)
    """Threads that decode and encode; the bytes written do not depend on it."""

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100 or self.workers < 1:
            raise InputError(f"quality {self.quality}, {self.workers} workers: expected 1 to 100, and 1 or more")


class DepthMap(NamedTuple):
    """A depth map as a gray JPEG, and the outputs of the network that became 0 and 255."""

    picture: Picture
    far: float
    near: float


EstimateResult = DepthMap | Problem


class EstimateJob(Protocol[Item]):
    """Where overlays come from and depth maps go: see `folder` and `shards`.

    `read` is called from many threads, `save` from one.
    """

    def name(self, item: Item) -> str:
        """The name of an overlay in messages."""
        ...

    def read(self, item: Item) -> bytes:
        """The encoded overlay; raise `BadImage` if that fails."""
        ...

    def save(self, batch: list[tuple[Item, EstimateResult]]) -> None:
        """Keep the depth maps of a batch; with `skip_bad`, there are problems among them."""
        ...


class EstimateError(OSError):
    """A picture or the network stopped a run. No `InputError`: hours of work are kept (see `resume.resumable`)."""


class EstimateReport(NamedTuple):
    """What a run did: sets with new depth maps, overlays left out, and for how long the network was at work."""

    sets: int
    problems: list[Problem]
    seconds: float
    model_sec: float
    sets_before: int = 0
    """Sets that an earlier run had finished."""
    part: PartDone | None = None
    """What was done of its part, if this was one."""


def estimate(
    model: DepthModel,
    job: EstimateJob[Item],
    batches: Iterable[Sequence[Item]],
    options: EstimateOptions,
    tick: Callable[[int], None] = lambda more: None,
) -> EstimateReport:
    """Save the depth maps of `batches`, each of at most `model.batch_size` overlays; `tick` is told how many more.

    Raises `EstimateError` for an overlay that does not decode, an output that is not finite and a network that fails;
    the batches before it are saved then, as before any other error.
    """
    start, model_sec, sets, problems = time.monotonic(), 0.0, 0, list[Problem]()
    failed = threading.Event()
    unsaved = deque[Future[list[EstimateResult]]]()

    def save(items: Sequence[Item], sizes: list[Size | Problem], values: NDArray[np.float32]) -> list[EstimateResult]:
        if failed.is_set():  # one batch was not saved, so no later one may be
            return []
        try:
            outputs = iter(values)
            drawing = [
                size if isinstance(size, Problem)
                else pool.submit(draw_depth_map, next(outputs), size, model.settings, options.quality, job.name(item))
                for item, size in zip(items, sizes, strict=True)
            ]  # fmt: skip
            results = [one.result() if isinstance(one, Future) else one for one in drawing]
            job.save(list(zip(items, results, strict=True)))
        except BaseException:
            failed.set()
            raise
        return results

    def collect_saved() -> None:
        nonlocal sets
        results = unsaved.popleft().result()
        bad = [result for result in results if isinstance(result, Problem)]
        problems.extend(bad)
        sets += len(results) - len(bad)
        tick(len(results))

    with (
        _input_errors_as_estimate_errors(),
        ThreadPoolExecutor(options.workers) as pool,
        ThreadPoolExecutor(1) as writer,
    ):
        for batch in drawn_ahead((_Batch.prepare(model, job, items, pool) for items in batches), PREPARED_BATCHES):
            sizes = [decoded.result() for decoded in batch.sizes]
            good = [place for place, size in enumerate(sizes) if not isinstance(size, Problem)]
            if len(good) < len(sizes) and not options.skip_bad:
                bad = next(size for size in sizes if isinstance(size, Problem))
                raise InputError(f"{bad.path}: {bad.why}: repair it, or leave such sets out with --skip-bad")
            images = batch.images if len(good) == len(sizes) else batch.images[good]
            begin = time.monotonic()
            values = model(images) if good else images
            model_sec += time.monotonic() - begin
            unsaved.append(writer.submit(save, batch.items, sizes, values))
            while len(unsaved) > UNSAVED_BATCHES or (unsaved and unsaved[0].done()):
                collect_saved()
        while unsaved:
            collect_saved()
    return EstimateReport(sets, problems, time.monotonic() - start, model_sec)


@contextmanager
def _input_errors_as_estimate_errors() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise EstimateError(str(error)) from error


class _Batch(NamedTuple, Generic[Item]):
    """Overlays on their way through the decoding threads."""

    items: Sequence[Item]
    images: NDArray[np.float32]  # [N, 3, H, W], as the model takes them, once all sizes are there
    sizes: list[Future[Size | Problem]]

    @classmethod
    def prepare(
        cls, model: DepthModel, job: EstimateJob[Item], items: Sequence[Item], pool: ThreadPoolExecutor
    ) -> "_Batch[Item]":
        def prepare(item: Item, out: NDArray[np.float32]) -> Size | Problem:
            try:
                overlay = decode_colour(job.read(item))
            except BadImage as error:
                return Problem(job.name(item), "undecodable", str(error))
            model.prepare(overlay, out)
            return overlay.shape[0], overlay.shape[1]

        images = np.empty((len(items), 3, *model.size), np.float32)
        return cls(items, images, [pool.submit(prepare, item, out) for item, out in zip(items, images, strict=True)])


def decode_colour(content: bytes) -> NDArray[np.uint8]:
    """Decode a picture to uint8 [H, W, 3]; raise `BadImage` if it does not decode without a warning."""
    content, _ = as_stored(content)
    if image_format(content) != "jpg":
        return decode_rgb(content)
    jpeg_size(content)
    try:
        picture: NDArray[np.uint8] = simplejpeg.decode_jpeg(content, "RGB", strict=True)
    except ValueError as error:
        raise BadImage(f"JPEG does not decode: {error}") from error
    return picture


def draw_depth_map(
    output: NDArray[np.float32], size: Size, settings: DepthModelSettings, quality: int, name: str
) -> DepthMap:
    """Draw what the network gave for one picture, [h, w], as a depth map of `size` (height, width), near = bright.

    Bilinear; 0 is the farthest and 255 the nearest value of the picture, or of `settings.range`, beyond which it
    saturates. A picture without any difference is 0. Raises `InputError` for an output that is not finite.
    """
    if not np.isfinite(output).all():
        count = int((~np.isfinite(output)).sum())
        raise InputError(
            f"{name}: {count} of the network's {output.size} outputs are not finite: are size, mean and std right?"
        )
    if output.shape != size:
        output = np.asarray(Image.fromarray(output).resize(size[::-1], Image.Resampling.BILINEAR))
    low, high = settings.range or (float(output.min()), float(output.max()))
    far, near = (low, high) if settings.near == "high" else (high, low)
    scaled = np.subtract(output, far, dtype=np.float64) / ((near - far) or 1.0)
    levels = np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8)
    return DepthMap(Picture("jpg", encode_gray(levels, quality), size), far, near)
