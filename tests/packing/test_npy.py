import io
import tracemalloc

import numpy as np
import pytest

from pipeline.format.images import BadImage
from pipeline.packing.npy import load_array
from tests.samples import npy

VALUES = np.arange(12.0).reshape(3, 4)


def with_header(text: str, numbers: bytes = b"", version: int = 1) -> bytes:
    length = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + text.encode("latin1") + numbers


def header(shape: str = "(3, 4)", descr: str = "'<f8'", order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


@pytest.mark.parametrize(
    "dtype", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "g", "u1", "i1", "<u2", ">i4", "<i8", ">u8"]
)
@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 1), (1, 3, 4), (1, 1, 3, 4), (1, 3, 4, 1), (3, 4, 1, 1)])
def test_every_kind_of_number_in_either_order_of_axes(dtype: str, shape: tuple[int, ...]) -> None:
    array = VALUES.astype(dtype).reshape(shape)
    for content in (npy(array), npy(np.asfortranarray(array)), npy(array) + b"what follows"):
        assert np.array_equal(load_array(content), VALUES)


def test_a_second_version_of_the_header() -> None:
    assert np.array_equal(load_array(with_header(header(), VALUES.tobytes(), version=2)), VALUES)


@pytest.mark.parametrize(
    ("shape", "found"), [((1, 1), (1, 1)), ((1, 5, 1), (5, 1)), ((5, 1), (5, 1)), ((1, 1, 5), (1, 5))]
)
def test_sides_of_one_pixel(shape: tuple[int, ...], found: tuple[int, int]) -> None:
    assert load_array(npy(np.zeros(shape))).shape == found


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (npy(VALUES)[:-1], r"\.npy does not load: it is cut short \(96 bytes of numbers expected, 95 found\)"),
        (npy(VALUES)[:30], r"\.npy does not load"),
        (b"\x93NUMPY", r"\.npy does not load"),
        (npy(np.array([[None]])), r"\.npy has shape \(1, 1\) of object: expected numbers"),
        (npy(np.zeros((3, 4, 4))), r"\.npy has shape \(3, 4, 4\) of float64: expected numbers \[H, W\]"),
        (npy(np.zeros(16)), r"\.npy has shape \(16,\)"),
        (npy(np.array(3.0)), r"\.npy has shape \(\)"),
        (npy(np.zeros((0, 4))), r"\.npy has shape \(0, 4\)"),
        (npy(np.zeros((4, 4), complex)), r"of complex128: expected numbers"),
        (npy(np.zeros((4, 4), bool)), r"of bool: expected numbers"),
        (npy(np.zeros((4, 4), "datetime64[s]")), r"of datetime64\[s\]: expected numbers"),
        (npy(np.zeros((4, 4), [("z", "f4")])), r"of \[\('z', '<f4'\)\]: expected numbers"),
        (with_header(header("(-3, -4)")), r"shape \(-3, -4\)"),
        (with_header(header("(3, True)")), r"shape \(3, True\)"),
        (with_header(header("3")), r"\.npy does not load"),
        (with_header(header(descr="'<f99'")), r"\.npy does not load"),
        (with_header(header(descr="[" * 500 + "]" * 500)), r"\.npy does not load"),
        (with_header("(" * 9000), r"\.npy does not load"),
        (with_header("-" * 9000 + "1"), r"\.npy does not load"),
        (with_header("{" + "'descr':" * 1000), r"\.npy does not load"),
        (with_header(header("(" + "1, " * 3000 + ")")), r"\.npy has shape|\.npy does not load"),
        (with_header(header(f"({10**30}, {10**30})")), r"cut short"),
        (with_header(" " * 70_000, version=2), r"\.npy does not load"),
        (with_header(header(), version=3), r"\.npy has version 3\.0"),
        (b"PK\x03\x04" + bytes(100), r"an archive of arrays \(\.npz\): save the one array"),
    ],
)
def test_bad_arrays_say_why_in_one_line(content: bytes, why: str) -> None:
    with pytest.raises(BadImage, match=why) as error:
        load_array(content)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_no_memory_is_taken_for_what_a_header_claims() -> None:
    tracemalloc.start()
    with pytest.raises(BadImage, match="cut short"):
        load_array(with_header(header("(100000, 1000)")))
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def test_nothing_in_a_pickle_is_run() -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return pytest.fail, ("it ran",)

    buffer = io.BytesIO()
    np.save(buffer, np.array([[Attack()]], object), allow_pickle=True)
    with pytest.raises(BadImage, match="of object: expected numbers"):
        load_array(buffer.getvalue())
