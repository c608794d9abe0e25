from pathlib import Path

import pytest

from pipeline.packing.metadata import MetadataTables
from tests.samples import write


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write(tmp_path / "labels.csv", b'key,bg,fg,x,visible,who\nb,1,2,-3,0.5,me\na,0,2,7,1.0,"you, too"\nc,0,0,0,1.0,x')
    write(tmp_path / "depth.csv", b"key,far,near\na,0.25,8.5\n")
    return tmp_path


def test_lines_are_found_by_key_and_joined(source: Path) -> None:
    one, two, three, none = MetadataTables(source).find(["a", "b", "c", "aa"])
    assert one == {"x": 7, "visible": 1.0, "who": "you, too", "depth_range": [0.25, 8.5]}
    assert two == {"x": -3, "visible": 0.5, "who": "me"}
    assert three == {"x": 0, "visible": 1.0, "who": "x"}, "without a line end at the end"
    assert none == {}


@pytest.mark.parametrize("content", [b"", b"\n", b"key,far,near", b"name,far,near\na,1,2\n", b"key,far\na,1\n"])
def test_a_table_of_something_else_says_nothing(content: bytes, source: Path) -> None:
    write(source / "depth.csv", content)
    assert MetadataTables(source).find(["a", "zz"]) == [{"x": 7, "visible": 1.0, "who": "you, too"}, {}]


def test_no_tables_say_nothing(tmp_path: Path) -> None:
    assert MetadataTables(tmp_path).find(["a"]) == [{}]
    assert MetadataTables(tmp_path).fingerprint() == []


def test_the_fingerprint_is_of_the_bytes(source: Path) -> None:
    before = MetadataTables(source).fingerprint()
    assert len(set(before)) == 2
    write(source / "depth.csv", b"key,far,near\na,0.25,8.75\n")
    after = MetadataTables(source).fingerprint()
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False]
