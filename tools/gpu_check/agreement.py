"""Part `agreement`: the graph gives on a GPU what it gives on a CPU, and that is what Pillow gives."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.format.images import decode_gray
from pipeline.loading.decode import DecodeOptions, Decoder, Undecodable
from tools.benchmark.reference import MEAN_TOLERANCE, P999_TOLERANCE
from tools.gpu_check.context import Context, Result
from tools.gpu_check.exact import exact_checks
from tools.gpu_check.samples import sample_files

LOADS = (0.0, 0.65, 1.0)  # of the hardware JPEG engine
COPIES = 4  # of each picture in a batch: at 0.65 some go to the engine, some do not
# Of 255 levels, where the same graph runs: decoders and resize kernels round differently, by a level or two each.
DEVICES_DIFFER = 3.0
CPU = "CPU"
Levels = NDArray[np.int64]


def measure(context: Context) -> Result:
    """Compare pictures of every kind, and whole sets; without a GPU, the CPU with Pillow and the loader with itself."""
    decoders = {CPU: new_decoder(context, "cpu", 0.0)}
    if context.on_gpu:
        decoders |= {f"GPU, load {load:g}": new_decoder(context, "gpu", load) for load in LOADS}
    figures, rows, failures = dict[str, dict[str, dict[str, float]]](), dict[str, list[str]](), list[str]()
    for name, content in sample_files().items():
        figures[name], wrong = compare(decoders, content, context.size)
        rows[name] = [_cell(figures[name].get(who)) for who in decoders]
        failures += [f"{name}: {line}" for line in wrong]
    bits = exact_checks(context)
    exact = [name for name, difference in bits.items() if difference == 0]
    failures += [f"{name}: not the same bits, {bits[name]} levels apart" for name in bits if name not in exact]
    notes = ['levels of 255; "load" is the hardware JPEG engine\'s share of the pictures']
    notes += [f"the same bits on the {context.flag.upper()}: {'; '.join(exact)}"] if exact else []
    if not context.on_gpu:
        notes.append("GPU against CPU: skipped: no GPU")
    titles = ["CPU - Pillow: largest / mean", *(f"{who} - CPU" for who in decoders if who != CPU)]
    return Result({"levels": figures, "bits": bits}, titles, rows, notes, failures)


def new_decoder(context: Context, device: str, load: float) -> Decoder:
    """A decoder of batches of COPIES."""
    return Decoder({"x": None}, DecodeOptions(COPIES, context.size, device, 2, 1, load))


def compare(
    decoders: Mapping[str, Decoder], content: bytes, size: int
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """How far one picture is from Pillow's on the CPU, and from the CPU's elsewhere; and a line for each that is wrong.

    `decoders` begin with the CPU's.
    """
    differences, wrong, expected = dict[str, dict[str, float]](), list[str](), by_pillow(content, size)
    for who, decoder in decoders.items():
        found = decoded(decoder, content)
        if found is None:
            wrong.append(f"{who} cannot decode it")
            continue
        apart = np.abs(found - expected)
        largest, mean, p999 = float(apart.max()), float(apart.mean()), float(np.quantile(apart, 0.999))
        differences[who] = {"max": largest, "mean": mean, "p999": p999}
        if who == CPU:
            if mean > MEAN_TOLERANCE or p999 > P999_TOLERANCE:
                wrong.append(f"CPU and Pillow are {mean:.2f} levels apart in the mean, {p999:.0f} in 99.9 % of pixels")
            expected = found
        elif largest > DEVICES_DIFFER:
            wrong.append(f"{who} and the CPU are {largest:.0f} levels apart, more than {DEVICES_DIFFER:.0f}")
    return differences, wrong


def decoded(decoder: Decoder, content: bytes) -> Levels | None:
    """COPIES of a picture through the graph, [COPIES, S, S]; None where DALI gives up on it."""
    copies = [np.frombuffer(content, np.uint8)] * COPIES
    try:
        [batch] = decoder.decode(iter([[copies]]))
    except Undecodable:
        return None
    return batch["x"][:, 0].cpu().numpy().astype(np.int64)


def by_pillow(content: bytes, size: int) -> Levels:
    """The slow, obvious way, [S, S]."""
    gray = Image.fromarray(decode_gray(content))
    return np.asarray(gray.resize((size, size), Image.Resampling.BILINEAR)).astype(np.int64)


def _cell(difference: Mapping[str, float] | None) -> str:
    return f"{difference['max']:.0f} / {difference['mean']:.2f}" if difference else "not decoded"
