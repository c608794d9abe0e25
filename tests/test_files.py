from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.files import atomic_file, filled_folder, whole_folder
from tests.samples import files_below, write


def test_an_atomic_file_is_whole_or_not_there(tmp_path: Path) -> None:
    write(tmp_path / "a", b"old")
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "a") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert files_below(tmp_path) == {"a": b"old"}
    with atomic_file(tmp_path / "a") as file:
        file.write(b"new")
        assert (tmp_path / "a").read_bytes() == b"old"
    assert files_below(tmp_path) == {"a": b"new"}


@pytest.mark.parametrize("filling", [filled_folder, whole_folder])
def test_a_failed_filling_leaves_the_folder_as_it_was(filling: Any, tmp_path: Path) -> None:
    for folder in (tmp_path / "new" / "deep", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(KeyboardInterrupt), filling(folder) as place:
            write((place or folder) / "below" / "a", b"half")
            raise KeyboardInterrupt
    assert not (tmp_path / "new" / "deep").exists()
    assert list((tmp_path / "empty").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_hidden_files_may_stay_where_a_folder_is_filled_in_place(tmp_path: Path) -> None:
    write(tmp_path / ".gitkeep", b"")
    with filled_folder(tmp_path):
        write(tmp_path / "a", b"1")
    assert files_below(tmp_path) == {".gitkeep": b"", "a": b"1"}
    write(tmp_path / "b" / ".gitkeep", b"")
    with pytest.raises(InputError, match=r"is not empty \(it holds \.gitkeep\)"), whole_folder(tmp_path / "b"):
        pass


def test_a_whole_folder_appears_at_once(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "a") as place:
        write(place / "b", b"1")
        assert not (tmp_path / "a").exists()
    assert files_below(tmp_path) == {"a/b": b"1"}
