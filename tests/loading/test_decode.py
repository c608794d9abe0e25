import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import InputError
from pipeline.format.depth import colour_map, depth_table
from pipeline.loading.decode import HOLES, DecodeOptions, Decoder, Encoded, Table, Undecodable, _Feed, hardware_load
from tests.samples import jpeg, png, smooth_picture

OPTIONS = DecodeOptions(batch_size=4, size=32, device="cpu", threads=1, prefetch=2)
DEVICES = ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)]


def encoded(*pictures: bytes) -> Encoded:
    return [[np.frombuffer(picture, np.uint8) for picture in pictures]]


def decode(*pictures: bytes, table: Table = None, device: str = "cpu", size: int = 32) -> torch.Tensor:
    options = DecodeOptions(batch_size=8, size=size, device=device, threads=1, prefetch=2)
    [batch] = Decoder({"x": table}, options).decode(iter([encoded(*pictures)]))
    return batch["x"]


def by_pillow(data: bytes, size: int = 32) -> np.ndarray:
    gray = Image.open(io.BytesIO(data)).convert("L")
    return np.asarray(gray.resize((size, size), Image.Resampling.BILINEAR), dtype=int)


def rgb_jpeg() -> bytes:
    """A JPEG of red, green and blue: its Adobe marker says so, and the names of its components."""
    buffer = io.BytesIO()
    Image.fromarray(smooth_picture(5)).save(buffer, "JPEG", quality=90, keep_rgb=True)
    return buffer.getvalue()


def named(data: bytes, names: bytes) -> bytes:
    """A JPEG whose three components have these names."""
    frame, scan, renamed = data.index(b"\xff\xc0"), data.index(b"\xff\xda"), bytearray(data)
    renamed[frame + 10 : frame + 19 : 3] = renamed[scan + 5 : scan + 11 : 2] = names
    return bytes(renamed)


RGB = rgb_jpeg()
ADOBE = slice(RGB.index(b"\xff\xee"), RGB.index(b"\xff\xee") + 16)
JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
RGB_JPEGS = {"both": RGB, "Adobe": named(RGB, b"\1\2\3"), "names": RGB[:2] + RGB[ADOBE.stop :]}
OTHER_JPEGS = {
    "JFIF and both": RGB[:2] + JFIF + RGB[2:],
    "neither": named(RGB_JPEGS["names"], b"\1\2\3"),
    "Adobe, YCbCr": RGB[: ADOBE.stop - 1] + b"\1" + RGB[ADOBE.stop :],
    "usual": jpeg(smooth_picture(5)),
    "Exif": jpeg(smooth_picture(5))[:2] + b"\xff\xe1\0\x08Exif\0\0" + jpeg(smooth_picture(5))[2:],
    "gray": jpeg(smooth_picture(5, 1)),
    "no JPEG": png(smooth_picture(5)),
    "cut short": RGB[:100],
}


def handed(content: NDArray[np.uint8], device: str) -> NDArray[np.uint8]:
    """What DALI gets of an encoded picture."""
    feed = _Feed(replace(OPTIONS, device=device))
    feed.batches = iter([[[content]]])
    [[found]] = feed()
    return found


@pytest.mark.parametrize("form", RGB_JPEGS)
def test_nvjpeg_gets_no_jpeg_of_rgb(form: str) -> None:
    content = np.frombuffer(RGB_JPEGS[form], np.uint8)
    for_gpu = handed(content, "gpu")
    with Image.open(io.BytesIO(for_gpu.tobytes())) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "L", (48, 48))
        levels = np.asarray(picture)
    assert np.array_equal(levels, decode(RGB_JPEGS[form], size=48).numpy()[0, 0])
    luma = np.asarray(Image.fromarray(smooth_picture(5)).convert("L"))
    assert np.abs(levels - luma.astype(int)).max() <= 8  # what JPEG makes of it; as YCbCr it is far off
    assert handed(content, "cpu") is content


@pytest.mark.parametrize("form", OTHER_JPEGS)
def test_other_pictures_are_handed_to_a_gpu_as_they_are(form: str) -> None:
    content = np.frombuffer(OTHER_JPEGS[form], np.uint8)
    assert handed(content, "gpu") is content


def test_a_damaged_jpeg_of_rgb_is_undecodable_on_a_gpu() -> None:
    with pytest.raises(Undecodable, match=r"^JPEG does not decode: "):
        handed(np.frombuffer(RGB[: len(RGB) // 2], np.uint8), "gpu")


@pytest.mark.parametrize("device", DEVICES)
def test_gray_decode_and_antialiased_resize_equal_pillows(device: str) -> None:
    pictures = [
        smooth_picture(0, 3, 224),
        smooth_picture(1, 1, 100),
        smooth_picture(2, 3, 33)[:30],
        smooth_picture(3, 3, 20),
    ]
    files = [jpeg(pictures[0]), jpeg(pictures[1]), jpeg(np.ascontiguousarray(pictures[2])), png(pictures[3])]
    files += [RGB_JPEGS["both"], RGB_JPEGS["names"]]
    batch = decode(*files, device=device).cpu()
    assert batch.dtype == torch.uint8
    assert batch.shape == (6, 1, 32, 32)
    for picture, data in zip(batch.numpy(), files, strict=True):
        # Both convert with BT.601 and filter with a triangle; decoders and rounding may differ by a level each.
        assert np.abs(picture[0].astype(int) - by_pillow(data)).max() <= 3


def test_pictures_are_not_turned_by_their_exif_orientation() -> None:
    picture, exif, buffer = smooth_picture(0), Image.Exif(), io.BytesIO()
    exif[0x0112] = 6  # "rotate by 90 degrees to view"
    Image.fromarray(picture).save(buffer, "JPEG", quality=95, exif=exif)
    batch = decode(buffer.getvalue()).numpy()
    assert np.abs(batch[0, 0].astype(int) - by_pillow(buffer.getvalue())).max() <= 3


@pytest.mark.parametrize("device", DEVICES)
def test_the_depth_table_comes_before_the_resize(device: str) -> None:
    # Stripes of scalar 0 and 255: after magma, the mean of codes is far from the code of the mean.
    scalar = np.zeros((64, 64), np.uint8)
    scalar[:, 1::2] = 255
    stripes = png(np.rint(colour_map("magma")[scalar]).astype(np.uint8))
    mean = decode(stripes, table=depth_table("magma", "bright"), device=device).float().mean()
    assert abs(float(mean) - 127.5) < 2
    without = decode(stripes, device=device).float().mean()
    assert abs(float(without) - 127.5) > 5


def test_the_table_is_exact() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    table = np.random.default_rng(0).integers(0, 256, 256).astype(np.uint8)
    assert np.array_equal(decode(png(ramp), table=table, size=16).numpy()[0, 0].ravel(), table)


def test_batches_of_any_size_keep_their_own_memory_and_order() -> None:
    pictures = [jpeg(np.full((32, 32, 1), level, np.uint8)) for level in range(0, 200, 20)]
    batches = [encoded(*pictures[start:end]) for start, end in [(0, 4), (4, 5), (5, 9), (9, 10)]]
    decoder = Decoder({"x": None}, OPTIONS)
    for _ in range(3):  # epochs through one graph
        levels = torch.cat([batch["x"] for batch in list(decoder.decode(iter(batches)))])[:, 0, 0, 0]
        assert levels.tolist() == list(range(0, 200, 20))


def test_a_run_left_before_its_end_leaves_nothing_for_the_next() -> None:
    decoder = Decoder({"x": None}, OPTIONS)
    first = decoder.decode(encoded(jpeg(np.full((32, 32, 1), 10, np.uint8))) for _ in range(100))
    assert set(next(first)["x"].flatten().tolist()) == {10}
    first.close()
    [second] = decoder.decode(iter([encoded(jpeg(np.full((32, 32, 1), 90, np.uint8)))]))
    assert set(second["x"].flatten().tolist()) == {90}
    assert list(decoder.decode(iter([]))) == []


def test_batches_are_taken_only_a_few_ahead() -> None:
    taken = 0

    def batches() -> Iterator[Encoded]:
        nonlocal taken
        while True:
            taken += 1
            yield encoded(jpeg(np.zeros((8, 8, 1), np.uint8)))

    results = Decoder({"x": None}, OPTIONS).decode(batches())
    for _ in range(10):
        next(results)
    assert taken <= 10 + OPTIONS.prefetch


def test_what_the_source_raises_comes_through() -> None:
    def batches() -> Iterator[Encoded]:
        yield encoded(jpeg(np.zeros((8, 8, 1), np.uint8)))
        raise InputError("the disk is gone")

    decoder = Decoder({"x": None}, OPTIONS)
    with pytest.raises(InputError, match="the disk is gone"):
        list(decoder.decode(batches()))
    assert len(list(decoder.decode(iter([encoded(jpeg(np.zeros((8, 8, 1), np.uint8)))])))) == 1


CUDA_FAULT = "CUDA runtime API error cudaErrorIllegalAddress (700):\nan illegal memory access was encountered"


def of_dali(reason: str) -> str:
    """As DALI words an error of an operator."""
    return (
        "Critical error in pipeline:\nError in MIXED operator `nvidia.dali.fn.decoders.image`,\nwhich was used in:\n\n"
        f'  File "decode.py", line 66, in decode_part\n    picture = fn.decoders.image(\n\nencountered:\n\n{reason}\n'
        "Current pipeline object is no longer valid."
    )


class FailingGraph:
    """Stands in for a graph."""

    def __init__(self, *errors: RuntimeError) -> None:
        self._errors = iter(errors)

    def run(self, stream: None) -> None:
        raise next(self._errors)


@pytest.mark.parametrize(
    "damage",
    {
        "half a JPEG": jpeg(smooth_picture(0))[:700],
        "the begin of a JPEG": jpeg(smooth_picture(0))[:30],
        "half a PNG": png(smooth_picture(0))[:700],
        "a PNG with a hole": png(smooth_picture(0))[:60] + bytes(99) + png(smooth_picture(0))[159:],
        "no picture": b"<!DOCTYPE html>",
        "nothing": b"",
    }.items(),
    ids=lambda item: item[0],
)
def test_damaged_pictures_are_undecodable(damage: tuple[str, bytes]) -> None:
    with pytest.raises(Undecodable, match=r"^(Failed to decode sample #1|nvImageCodec failure: '#\d+')$"):
        decode(jpeg(smooth_picture(0)), damage[1])


@pytest.mark.parametrize(
    "reason",
    [
        CUDA_FAULT,
        "CUDA allocation failed\nCan't allocate 9999 bytes on device 0.",
        "nvml error (9): A nvml internal driver error occurred",
        "nvImageCodec failure: '#5'",  # its allocator's
        "nvImageCodec failure: '#21'",  # of a CUDA call
        "std::bad_alloc",
        "",
    ],
)
def test_a_fault_of_the_machine_comes_through_as_what_it_is(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (RuntimeError(of_dali(reason)), RuntimeError(reason)):
        monkeypatch.setattr("pipeline.loading.decode.build_graph", lambda *_, fault=error: FailingGraph(fault))
        with pytest.raises(RuntimeError) as caught:
            list(Decoder({"x": None}, OPTIONS).decode(iter([])))
        assert caught.value is error


def test_what_dali_says_of_a_picture_is_told_in_short(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError(of_dali("Failed to decode sample #3 : "))
    monkeypatch.setattr("pipeline.loading.decode.build_graph", lambda *_: FailingGraph(error))
    with pytest.raises(Undecodable, match=r"^Failed to decode sample #3$"):
        list(Decoder({"x": None}, OPTIONS).decode(iter([])))


@pytest.mark.parametrize(
    ("asked", "capability", "load"),
    [(None, (9, 0), 0.0), (None, (8, 0), 0.65), (None, (10, 0), 0.65), (0.65, (9, 0), 0.65), (0.0, (8, 0), 0.0)],
)
def test_no_picture_is_left_to_hoppers_jpeg_engine_unless_it_is_asked_for(
    asked: float | None, capability: tuple[int, int], load: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert hardware_load(asked, "gpu") == load
    assert hardware_load(None, "cpu") == 0.65  # no device is asked about


@pytest.mark.parametrize("load", [-0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(load: float) -> None:
    with pytest.raises(
        InputError, match=rf"^hw_decoder_load {load}: expected 0 to 1, or None for the device's default$"
    ):
        replace(OPTIONS, hw_decoder_load=load)


def test_the_decoders_memory_is_small_and_its_threads_are_bound_to_no_core(monkeypatch: pytest.MonkeyPatch) -> None:
    from nvidia.dali import fn

    asked, image = list[dict[str, Any]](), fn.decoders.image

    def recorded(encoded: Any, **how: Any) -> Any:
        asked.append(how)
        return image(encoded, **how)

    monkeypatch.setattr(fn.decoders, "image", recorded)
    picture = jpeg(smooth_picture(0))
    assert torch.equal(decode(picture), decode(picture))
    for how in asked:
        assert how["affine"] is False
        assert how["device_memory_padding"] == how["host_memory_padding"] == 1 << 20
        assert how["hw_decoder_load"] == 0.65
    assert len(asked) == 2


def holed_picture(seed: int, size: int) -> np.ndarray:
    """Levels of 1 to 255, some regions and single pixels of 0; uint8 [size, size]."""
    levels = np.maximum(smooth_picture(seed, 1, size)[..., 0], 1)
    levels[np.random.default_rng(seed).random(levels.shape) < 0.02] = 0
    levels[: size // 3, size // 4 : size // 2] = 0
    return levels


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [48, 77, 224])
def test_holes_do_not_mix_into_what_was_measured(device: str, size: int) -> None:
    levels = holed_picture(size, size)
    found = decode(png(levels), table=HOLES, device=device).cpu().numpy()[0, 0]
    planes = (Image.fromarray(plane.astype(np.float32)) for plane in (levels, levels > 0))
    sums, shares = (np.asarray(plane.resize((32, 32), Image.Resampling.BILINEAR)) for plane in planes)
    assert np.array_equal(found > 0, shares >= 0.5)
    expected = np.where(shares >= 0.5, sums / np.maximum(shares, 0.5), 0)
    assert np.abs(found - expected).max() <= 3  # Pillow and DALI repeat the edge by different rules
    assert np.abs(found - expected)[1:-1, 1:-1].max() <= 1
    flat = decode(png(np.where(levels > 0, 200, 0).astype(np.uint8)), table=HOLES, device=device)
    assert set(flat.flatten().tolist()) == {0, 200}


def test_without_a_hole_depth_is_resized_as_ever() -> None:
    picture = png(np.maximum(smooth_picture(4, 1, 100)[..., 0], 1))
    apart = decode(picture, table=HOLES).int() - decode(picture).int()
    assert apart.abs().max() <= 1  # a mean on the middle between two levels is rounded up or down
    assert apart.count_nonzero() < 0.01 * apart.numel()
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(decode(png(ramp), table=HOLES, size=16).numpy()[0, 0], ramp)
