"""What has to be the same to the last bit: tables, the bank, planes, resident epochs, a run that is resumed."""

import io
from collections.abc import Sequence
from contextlib import closing
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.format.depth import ENCODINGS, NEAR, depth_table
from pipeline.loading.batch import Batch
from pipeline.loading.decode import DecodeOptions, Decoder
from pipeline.loading.loader import Loader
from pipeline.loading.shard_reader import Store
from tools.gpu_check.context import Context

BATCH, SETS, EPOCHS = 32, 320, 2
BEFORE = 3  # batches, then a run is left and another resumes it
CUDA_ALONE = 0.0  # load of the hardware engine: which picture it decodes depends on the batch, and engines may round
OTHER = 256  # what is said of batches that are not even alike in form


def exact_checks(context: Context) -> dict[str, int]:
    """By what is compared, how many levels of 255 apart it is at most: 0 where all is well."""
    loader = Loader(context.shards, "all", BATCH, context.size, context.flag, hw_decoder_load=CUDA_ALONE)
    picked = loader.rows()[:SETS]
    with closing(loader.sibling("all", picked=picked)) as streamed:
        expected = [batch for _ in range(EPOCHS) for batch in streamed]
    found = {"every depth table": depth_tables(context), "bank gathered": bank(context, loader, picked[:BATCH])}
    for place in ("device", "host") if context.on_gpu else ("host",):
        with closing(loader.sibling("all", picked=picked, resident=place)) as resident:
            batches = [batch for _ in range(EPOCHS) for batch in resident]
        found[f"resident on the {place} = streamed, {EPOCHS} epochs"] = apart(batches, expected)
    found["resumed in the middle of an epoch"] = apart(resumed(loader, picked), expected)
    found["planes = the CPU's of JPEG"] = planes(context, loader, picked[:BATCH])
    return found


def apart(batches: Sequence[Batch], others: Sequence[Batch], but: str = "") -> int:
    """The largest difference of any pixel of two runs of batches, on any device; `but` names a field left out."""
    if len(batches) != len(others):
        return OTHER
    worst = 0
    for one, other in zip(batches, others, strict=True):
        for name, tensor in vars(one).items():
            if name != but:
                worst = max(worst, _apart(tensor, getattr(other, name)))
    return worst


def _apart(one: torch.Tensor, other: torch.Tensor) -> int:
    if one.shape != other.shape or one.dtype != other.dtype:
        return OTHER
    return int((one.cpu().long() - other.cpu().long()).abs().max())


def depth_tables(context: Context) -> int:
    """Every gray level through every table, in a picture that keeps its size."""
    ramp, buffer, worst = np.arange(256, dtype=np.uint8).reshape(16, 16), io.BytesIO(), 0
    Image.fromarray(ramp).save(buffer, "PNG")
    file = np.frombuffer(buffer.getvalue(), np.uint8)
    for table in (depth_table(encoding, near) for encoding in ENCODINGS for near in NEAR):
        [levels] = Decoder({"x": table}, DecodeOptions(1, 16, context.flag, 1, 1)).decode(iter([[[file]]]))
        worst = max(worst, _apart(levels["x"].flatten(), torch.from_numpy(table)))
    return worst


def bank(context: Context, loader: Loader, rows: NDArray[np.int64]) -> int:
    """Backgrounds as sets get them, and each of them decoded by itself."""
    alone = Decoder({"bg": None}, DecodeOptions(1, context.size, context.flag, 1, 1, CUDA_ALONE))
    ids = loader.index["bg"][rows].tolist()
    store = Store.open(context.shards)
    files = ([[store.read_background(bg)]] for bg in ids)
    expected = torch.cat([pictures["bg"] for pictures in alone.decode(files)])
    return _apart(loader.pick(rows.tolist()).bg, expected)


def resumed(loader: Loader, picked: NDArray[np.int64]) -> list[Batch]:
    """EPOCHS epochs, of which one loader does the first BEFORE batches, and another all that follows."""
    with closing(loader.sibling("all", picked=picked)) as left:
        batches = list(islice(left, BEFORE))
        state = left.state_dict()
    with closing(loader.sibling("all", picked=picked)) as other:
        other.load_state_dict(state)
        return batches + [batch for _ in range(EPOCHS) for batch in other]


def planes(context: Context, loader: Loader, rows: NDArray[np.int64]) -> int:
    """Sets as planes, on the device, and as JPEG, on the CPU, which is what was packed."""
    packed = Loader(context.planes, "all", BATCH, context.size, context.flag)
    jpeg = Loader(context.shards, "all", BATCH, context.size, "cpu")
    places = {key: row for row, key in enumerate(packed.index["key"].tolist())}
    theirs = [places[loader.index["key"][row]] for row in rows.tolist()]
    return apart([packed.pick(theirs)], [jpeg.pick(rows.tolist())], but="index")
