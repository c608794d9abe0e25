"""Decode: the DALI graph, encoded pictures -> uint8 [N, 1, H, W] on the device.

The same graph runs on "gpu" (mixed decode: hardware JPEG engine and CUDA) and on "cpu"; only the device differs.
"""

import re
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.dlpack import from_dlpack

from pipeline.devices import dali_extra, torch_device
from pipeline.errors import InputError, MachineError
from pipeline.format.depth import WITH_HOLES, depth_table
from pipeline.format.images import BadImage, decode_jpeg_gray, holds_rgb
from pipeline.format.png import encode_png, without_ancillary
from pipeline.installation import install_hint
from pipeline.loading.buffers import BufferPool

if TYPE_CHECKING:
    from nvidia.dali import Pipeline

Encoded = list[list[NDArray[np.uint8]]]
"""A batch of encoded pictures: for each part, uint8 [bytes] for each sample."""
Table = NDArray[np.uint8] | Literal["holes"] | None
"""256 values that gray levels are looked up in; None leaves them as they are, as HOLES does, of which 0 is no level."""
HOLES: Literal["holes"] = "holes"
DALI_LOAD = 0.65  # DALI's own default of `hw_decoder_load`
HOPPER = 9  # compute capability 9.x
# A decoder's threads take memory in multiples of so many bytes, once on the device and twice on the host. DALI's own 16
# and 8 MiB come to 1.5 GiB for three parts and 16 threads. Half of this is enough for 300 x 300 pixels in color; for a
# larger picture the memory grows, once.
PADDING_BYTES = 1 << 20
# What DALI says of a picture: that it failed to decode it, or nvImageCodec's status of a code stream that is bad (3,
# 13), unsupported (4, 14) or incomplete (19), or with which a parser failed (17: half a PNG). Others are no picture's.
DECODE_ERROR = re.compile(r"Failed to decode sample #\d|nvImageCodec failure: '#(3|4|13|14|17|19)'")


def hardware_load(asked: float | None, device: str) -> float:
    """The share of the JPEGs for the hardware engine of "gpu" (the current CUDA device), where `asked` leaves it open.

    None on Hopper: nvJPEG's batched hardware decoder writes there before the stream's earlier work is done (torchcodec
    #1634, on an H100), into memory that may still be read. `python -m benchmarks.gpu` tells what is safe on a card.
    """
    if asked is not None:
        return asked
    hopper = device == "gpu" and torch.cuda.get_device_capability()[0] == HOPPER
    return 0.0 if hopper else DALI_LOAD


class Undecodable(Exception):  # noqa: N818 - a finding about the data, not a fault of the program
    """DALI cannot decode a picture of a batch, and gave up the graph with it; the message is DALI's."""


@dataclass(frozen=True)
class DecodeOptions:
    """How the graph runs."""

    batch_size: int
    """Most samples in a batch."""
    size: int
    """Height and width of the results, pixels."""
    device: str
    """Where it runs: "gpu" or "cpu"."""
    threads: int
    """CPU threads of DALI: decoding on "cpu", parsing and Huffman decoding on "gpu"."""
    prefetch: int
    """Batches under way at once."""
    hw_decoder_load: float | None = None
    """Share of the JPEGs that the hardware engine of a GPU decodes, if it has one; CUDA decodes the others.

    0 to 1; None: that of `hardware_load`.
    """

    def __post_init__(self) -> None:
        if self.hw_decoder_load is not None and not 0 <= self.hw_decoder_load <= 1:
            raise InputError(
                f"hw_decoder_load {self.hw_decoder_load}: expected 0 to 1, or None for the device's default"
            )


def depth_levels(encoding: str, near: str) -> Table:
    """How depth pictures of an encoding of `depth.STORED` become nearness."""
    return HOLES if encoding == WITH_HOLES else depth_table(encoding, near)


def decode_part(encoded: Any, table: Table, options: DecodeOptions) -> Any:
    """The nodes of one part, in execution order."""
    from nvidia.dali import fn, types

    device = "mixed" if options.device == "gpu" else "cpu"
    # Pixels as they are stored: parts were paired so, by tools that do not turn pictures by their EXIF orientation.
    picture = fn.decoders.image(
        encoded,
        device=device,
        output_type=types.GRAY,
        adjust_orientation=False,
        hw_decoder_load=hardware_load(options.hw_decoder_load, options.device),
        # Not one thread to each core from the first on, where the threads of all ranks and parts would meet.
        affine=False,
        device_memory_padding=PADDING_BYTES,
        host_memory_padding=PADDING_BYTES,
    )
    if isinstance(table, np.ndarray) and (table != np.arange(256)).any():
        # Before any resizing: a mean of codes is not the code of the mean.
        picture = fn.lookup_table(picture, keys=list(range(256)), values=table.tolist(), dtype=types.UINT8)
    resize = partial(fn.resize, size=[options.size, options.size], interp_type=types.INTERP_LINEAR, antialias=True)
    return _resize_measured(picture, resize) if isinstance(table, str) else resize(picture)


def _resize_measured(picture: Any, resize: Callable[..., Any]) -> Any:
    """Resize levels of 1 to 255 among holes of 0, so that no hole mixes into what was measured.

    A pixel is the mean of the measured ones among those that it is made of, weighted as ever; it is a hole where these
    have less than half of the weight.
    """
    from nvidia.dali import fn, math, types

    measured = fn.lookup_table(picture, keys=[0], values=[0], default_value=1, dtype=types.FLOAT)
    levels, share = resize(picture, dtype=types.FLOAT), resize(measured)  # holes add 0 to both
    return fn.cast(math.clamp(levels / math.max(share, 0.5), 1, 255) * (share >= 0.5), dtype=types.UINT8)


def build_graph(source: Callable[[], Encoded], tables: Mapping[str, Table], options: DecodeOptions) -> "Pipeline":
    """The whole graph, in execution order.

    `source` returns the next batch or raises StopIteration at the end of an epoch; `tables` names the parts, in the
    order of the source's lists. Raises `InputError` where DALI or the device is missing.
    """
    device = torch_device(options.device)
    try:
        from nvidia.dali import Pipeline, fn, types
        from nvidia.dali.tensors import TensorCPU
    except ImportError as error:
        raise MachineError(f"NVIDIA DALI is missing ({error}): {install_hint(dali_extra())}") from error

    def tensors() -> list[list[TensorCPU]]:
        # DALI's own tensors on our memory: to find out what any other array is costs it twice the time.
        return [[TensorCPU(content) for content in part] for part in source()]

    graph = Pipeline(
        batch_size=options.batch_size,
        num_threads=options.threads,
        device_id=device.index,  # None on the CPU
        prefetch_queue_depth=options.prefetch,
    )
    with graph:
        parts = fn.external_source(
            tensors, num_outputs=len(tables), batch=True, dtype=types.UINT8, ndim=1, no_copy=True
        )
        tasks = zip(parts, tables.values(), strict=True)
        graph.set_outputs(*(decode_part(part, table, options) for part, table in tasks))
    graph.build()
    return graph


def for_gpu(content: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An encoded picture, uint8 [bytes], as "gpu" decodes it to the pixels of "cpu"; `content` itself if that does.

    nvJPEG takes all JPEGs of three colours for YCbCr, whatever they state: one of RGB becomes a gray PNG, of the pixels
    that libjpeg makes of it. Raises `Undecodable` for one that does not decode without a warning.
    """
    if not holds_rgb(content):
        return without_ancillary(content)
    try:
        return np.frombuffer(encode_png(decode_jpeg_gray(content)), np.uint8)
    except BadImage as error:
        raise Undecodable(str(error)) from error


class _Feed:
    """What a graph draws its batches from. It knows neither graph nor decoder, so that both go when they are let go.

    DALI reads the encoded bytes from our memory, not from a copy, until their batch has come out: they are kept here,
    as long as the graph is there.
    """

    def __init__(self, options: DecodeOptions) -> None:
        self.batches: Iterator[Encoded] = iter(())
        self._for_device = for_gpu if options.device == "gpu" else without_ancillary
        self._in_flight: deque[Encoded] = deque(maxlen=options.prefetch + 2)

    def __call__(self) -> Encoded:
        # Else libpng makes a PNG's colours gray by the gamma that its metadata state, unlike all others.
        batch = [[self._for_device(content) for content in part] for part in next(self.batches)]
        self._in_flight.append(batch)
        return batch

    def clear(self) -> None:
        """Let go of what was given, once the graph is through with it."""
        self.batches = iter(())
        self._in_flight.clear()


class Decoder:
    """Decodes runs of batches, `prefetch` of them ahead of whoever takes the results."""

    def __init__(self, tables: Mapping[str, Table], options: DecodeOptions) -> None:
        """`tables` names the parts; raises `InputError` where DALI or the device is missing."""
        self._tables, self._options = tables, options
        self._memory = BufferPool()
        self._graph: tuple[Pipeline, _Feed] | None = self._build()

    def _build(self) -> "tuple[Pipeline, _Feed]":
        feed = _Feed(self._options)
        return build_graph(feed, self._tables, self._options), feed

    def decode(self, batches: Iterator[Encoded]) -> Generator[dict[str, torch.Tensor], None, None]:
        """Yield each batch decoded: for each part a tensor of its own, uint8 [N, 1, size, size] on the device.

        What `batches` raises comes through, and so do faults of the machine (CUDA, memory). Raises `Undecodable` if
        DALI cannot decode a picture; it does not tell which.
        """
        # A graph that was left before its end still holds batches of that run: it is not used again.
        (graph, feed), self._graph = self._graph or self._build(), None
        feed.batches = batches
        stream = results_stream(self._options.device)
        try:
            while True:
                try:
                    outputs = graph.run(stream)
                except StopIteration:
                    break
                except RuntimeError as error:
                    if not DECODE_ERROR.search(str(error)):
                        raise
                    raise Undecodable(_reason(error)) from error
                pictures = [from_dlpack(output.as_tensor()) for output in outputs]
                # DALI writes into its buffers again at the next run, so the batch gets memory of its own. [N, H, W, 1]
                # and [N, 1, H, W] are the same bytes.
                parts = zip(self._tables, pictures, strict=True)
                yield {name: self._copy(picture).view(len(picture), 1, *picture.shape[1:3]) for name, picture in parts}
            graph.reset()
            feed.clear()
            self._graph = graph, feed
        finally:
            feed.batches = iter(())  # what a graph still holds goes with it: its threads may be at work on that
            del graph

    def _copy(self, pictures: torch.Tensor) -> torch.Tensor:
        return pictures.clone() if pictures.is_cuda else self._memory.empty(pictures.shape).copy_(pictures)


def results_stream(device: str) -> torch.cuda.Stream | None:
    """What to run a graph on "gpu" or "cpu" with: the current CUDA stream, before whose later work DALI orders results.

    The host then does not wait for them; nor does DALI write into them again before that stream has read them.
    """
    return torch.cuda.current_stream() if device == "gpu" else None


def _reason(error: RuntimeError) -> str:
    """What DALI says of an error, without the lines that retell the graph."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines.index("encountered:") + 1 if "encountered:" in lines[:-1] else 0
    return lines[first].rstrip(" :") if lines else ""
