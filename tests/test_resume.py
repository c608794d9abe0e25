import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.resume import atomic_file, require_finished, resumable
from tests.samples import files_below, write

COUNT = {"command": "count", "to": 3}


def count(folder: Path, stop_at: int = 9, error: BaseException | None = None, *, fresh: bool = True) -> list[int]:
    """A run of three pieces, which leaves a file and a record for each; the pieces that this call did."""
    did = []
    with resumable(folder, COUNT, fresh=fresh) as records:
        for piece in range(3):
            if not (records / str(piece)).exists():
                if piece == stop_at:
                    raise error or KeyboardInterrupt
                write(folder / f"{piece}.txt", b"done")
                write(records / str(piece), b"")
                did.append(piece)
    return did


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


@pytest.mark.parametrize("stop_at", [1, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full"), ZeroDivisionError()])
def test_a_stopped_run_is_continued(stop_at: int, error: BaseException, tmp_path: Path) -> None:
    write(tmp_path / ".gitkeep", b"")
    with pytest.raises(type(error)) as stopped:
        count(tmp_path, stop_at, error)
    assert stopped.value.__notes__[-1] == f"what is done is kept in {tmp_path}: the same command continues it"
    with pytest.raises(InputError, match="is unfinished: run the same count again"):
        require_finished(tmp_path)
    assert count(tmp_path) == list(range(stop_at, 3))
    assert files_below(tmp_path) == {".gitkeep": b"", **{f"{piece}.txt": b"done" for piece in range(3)}}
    require_finished(tmp_path)


@pytest.mark.parametrize(("stop_at", "error"), [(0, KeyboardInterrupt()), (2, InputError("wrong"))])
def test_a_run_without_a_piece_or_with_wrong_input_leaves_nothing(
    stop_at: int, error: BaseException, tmp_path: Path
) -> None:
    write(tmp_path / "empty" / ".gitkeep", b"")
    for folder in (tmp_path / "new" / "deep", tmp_path / "empty"):
        with pytest.raises(type(error)):
            count(folder, stop_at, error)
    assert files_below(tmp_path) == {"empty/.gitkeep": b""}
    assert not (tmp_path / "new" / "deep").exists()


def test_a_work_in_a_folder_in_use_takes_nothing_away(tmp_path: Path) -> None:
    write(tmp_path / "mine", b"1")
    with pytest.raises(InputError, match=r"is not empty \(it holds mine\)"):
        count(tmp_path)
    for stop_at, error in ((0, KeyboardInterrupt()), (2, InputError("wrong"))):
        with pytest.raises(type(error)):
            count(tmp_path, stop_at, error, fresh=False)
    assert set(files_below(tmp_path)) >= {"mine", "0.txt", "1.txt"}
    assert count(tmp_path, fresh=False) == [2]
    assert sorted(files_below(tmp_path)) == ["0.txt", "1.txt", "2.txt", "mine"]


def test_other_arguments_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        count(tmp_path, 1)
    before = files_below(tmp_path)
    other = COUNT | {"to": 4}
    with (
        pytest.raises(InputError, match="holds an unfinished count with to 3, now it is 4"),
        resumable(tmp_path, other),
    ):
        pass
    assert files_below(tmp_path) == before


def test_two_processes_do_not_work_in_one_folder(tmp_path: Path) -> None:
    begin = "import json, sys; from pathlib import Path; from pipeline.resume import resumable\n"
    begin += "with resumable(Path(sys.argv[1]), json.loads(sys.argv[2])): print('in', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", begin, str(tmp_path), json.dumps(COUNT)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(InputError, match="another process is at work in"):
            count(tmp_path)
        other.kill()
    assert count(tmp_path) == [0, 1, 2]


def test_a_kill_at_any_moment_of_the_start_is_survived(tmp_path: Path) -> None:
    (tmp_path / ".unfinished").mkdir()
    assert count(tmp_path) == [0, 1, 2]


def test_a_kill_at_the_very_end_is_survived(tmp_path: Path) -> None:
    with resumable(tmp_path, COUNT) as records:
        write(records / "0", b"")
        write(tmp_path / ".unfinished-no-more" / "0", b"what another kill left behind")
    assert files_below(tmp_path) == {}
