import os
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.packing.metadata import MetadataTables
from tests.samples import write


def tables(folder: Path) -> MetadataTables:
    return MetadataTables(*((path.name, path) for path in sorted(folder.glob("*.csv"), reverse=True)))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write(tmp_path / "labels.csv", b'key,bg,fg,x,visible,who\nb,1,2,-3,0.5,me\na,0,2,7,1.0,"you, too"\nc,0,0,0,1.0,x')
    write(tmp_path / "depth.csv", b"key,far,near\na,0.25,8.5\n")
    return tmp_path


def test_lines_are_found_by_key_and_joined(source: Path) -> None:
    one, two, three, none = tables(source).find(["a", "b", "c", "aa"])
    assert one == {"x": 7, "visible": 1.0, "who": "you, too", "depth_range": [0.25, 8.5]}
    assert two == {"x": -3, "visible": 0.5, "who": "me"}
    assert three == {"x": 0, "visible": 1.0, "who": "x"}, "without a line end at the end"
    assert none == {}


@pytest.mark.parametrize("content", [b"", b"\n", b"key,far,near", b"name,far,near\na,1,2\n", b"key,far\na,1\n"])
def test_a_table_of_something_else_says_nothing(content: bytes, source: Path) -> None:
    write(source / "depth.csv", content)
    assert tables(source).find(["a", "zz"]) == [{"x": 7, "visible": 1.0, "who": "you, too"}, {}]


def test_no_tables_say_nothing(tmp_path: Path) -> None:
    assert tables(tmp_path).find(["a"]) == [{}]
    assert tables(tmp_path).fingerprint() == []


def test_the_fingerprint_is_of_the_bytes(source: Path) -> None:
    before = tables(source).fingerprint()
    assert len(set(before)) == 2
    write(source / "depth.csv", b"key,far,near\na,0.25,8.75\n")
    after = tables(source).fingerprint()
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False]


def test_tables_of_several_sources_become_one_beside_the_shards(source: Path, tmp_path: Path) -> None:
    other = b"key,x,y\nd,1,=2+3\n"
    origins = b"part,id,file\nbg,0,a.jpg\n", b"part,id,file\nbg,0,a.jpg\nfg,1,=b.png\n", b"what,else\n1,2\n"
    all_tables = MetadataTables(
        ("labels.csv", source / "labels.csv"), ("labels.csv", other), *(("sources.csv", one) for one in origins)
    )
    folder = tmp_path / "shards"
    folder.mkdir()
    all_tables.save(folder, [["d", "a"], ["none", "b"]])
    assert (folder / "labels.csv").read_bytes() == (
        b'key,bg,fg,x,visible,who,y\nd,,,1,,,\'=2+3\na,0,2,7,1.0,"you, too",\nb,1,2,-3,0.5,me,\n'
    )
    assert (folder / "sources.csv").read_bytes() == b"part,id,file\nbg,0,a.jpg\nfg,1,'=b.png\n"


def test_without_tables_nothing_is_written(tmp_path: Path) -> None:
    MetadataTables(("depth.csv", b"key,far,near\na,1,2\n"), ("labels.csv", b"no,key\n1,b\n")).save(tmp_path, [["a"]])
    assert list(tmp_path.iterdir()) == []


def test_a_table_of_absurd_size_is_not_read(source: Path) -> None:
    os.truncate(source / "labels.csv", 1 << 40)
    with pytest.raises(InputError, match=r"labels\.csv has 1,099,511,627,776 bytes, more than .*: it is no table"):
        tables(source)
