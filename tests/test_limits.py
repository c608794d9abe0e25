"""Sizes as users write them."""

import pytest

from pipeline.errors import InputError
from pipeline.limits import byte_count


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("100GB", 100 * 10**9), ("1.5 TiB", 3 << 39), ("500m", 500 * 10**6), ("8 KiB", 8192), ("7B", 7)],
)
def test_sizes_are_read_as_they_are_written(text: str, count: int) -> None:
    assert byte_count(text) == count


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1e9", "100 PB", "1.2345GB", "ten", "1iB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected bytes such as 100GB"):
        byte_count(text)
