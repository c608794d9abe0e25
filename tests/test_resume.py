import errno
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline.errors import AlreadyComplete, InputError, MachineError
from pipeline.resume import COMPLETE, atomic_file, require_files, require_finished, resumable
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
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full"), ZeroDivisionError(), MachineError("no boto3")]
)
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


def counted(folder: Path, arguments: Mapping[str, object] | None = None, newest_ns: int = 0) -> list[int]:
    """`count`, whose result is known once it is complete."""

    def result() -> str:
        require_files(folder, ["0.txt", "1.txt"])
        return "2 files"

    did = []
    with resumable(folder, arguments or COUNT, result=result, newest_ns=newest_ns) as records:
        for piece in range(2):
            write(folder / f"{piece}.txt", b"done")
            write(records / str(piece), b"")
            did.append(piece)
    return did


def test_the_same_again_is_already_complete_and_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert counted(folder) == [0, 1]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for _ in range(2):
        with pytest.raises(AlreadyComplete, match=f"^{folder}: already complete: 2 files$"):
            counted(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_kill_between_the_last_name_and_the_exit_looks_complete(tmp_path: Path) -> None:
    counted(tmp_path)
    write(tmp_path / ".unfinished" / "arguments.json", json.dumps(COUNT).encode())
    write(tmp_path / ".unfinished" / "0", b"")
    write(tmp_path / ".lock", b"")
    with pytest.raises(AlreadyComplete):
        counted(tmp_path)
    assert sorted(files_below(tmp_path)) == ["0.txt", "1.txt"]


def test_another_run_in_a_complete_one_is_refused_by_name(tmp_path: Path) -> None:
    counted(tmp_path)
    other: Mapping[str, object]
    for other, told in (
        (COUNT | {"to": 4}, "holds a complete count with to 3, now it is 4: give the same"),
        (COUNT | {"by": 2}, "with by null, now it is 2"),
        ({"command": "count"}, "with to 3, now it is null"),
        (COUNT | {"to": "ab" * 32}, 'now it is "abababab..." \\(a hash\\)'),
        (COUNT | {"command": "sort"}, r"is not empty \(it holds 0.txt\)"),
    ):
        with pytest.raises(InputError, match=told):
            counted(tmp_path, other)
    (tmp_path / "1.txt").unlink()
    with pytest.raises(InputError, match=r"was complete, and 1.txt is gone: copy it again, or remove"):
        counted(tmp_path)


def test_results_that_were_removed_are_made_again(tmp_path: Path) -> None:
    counted(tmp_path, COUNT | {"to": 4})
    for path in tmp_path.glob("*.txt"):
        path.unlink()
    assert counted(tmp_path) == [0, 1]
    with pytest.raises(AlreadyComplete):
        counted(tmp_path)


def test_a_source_that_was_changed_since_is_told(tmp_path: Path) -> None:
    """As make does it: by the time of the record, so that its bytes are the same on any machine."""
    newest_ns = 1_700_000_000_123_456_789
    counted(tmp_path / "a", newest_ns=newest_ns)
    counted(tmp_path / "b", newest_ns=newest_ns + 5)
    assert (tmp_path / "a" / COMPLETE).read_bytes() == (tmp_path / "b" / COMPLETE).read_bytes()
    with pytest.raises(AlreadyComplete):
        counted(tmp_path / "a", newest_ns=newest_ns)
    with pytest.raises(InputError, match="is complete, but a file of its source was changed since"):
        counted(tmp_path / "a", newest_ns=newest_ns + 1)


def test_times_in_steps_and_mounts_without_times_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    utime = os.utime
    monkeypatch.setattr(os, "utime", lambda path, ns: utime(path, ns=(ns[0] // 2**31 * 2**31,) * 2))
    newest_ns = 1_700_000_001_000_000_001
    for folder in (tmp_path / "fat", tmp_path / "none"):
        counted(folder, newest_ns=newest_ns)
        with pytest.raises(AlreadyComplete):
            counted(folder, newest_ns=newest_ns)
        monkeypatch.setattr(os, "utime", lambda path, ns: (tmp_path / "gone").stat())


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EIO])
def test_folders_that_cannot_be_renamed_are_removed(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def no_folders(path: Path, target: Path) -> Path:
        if path.is_dir():
            raise OSError(number, os.strerror(number))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", no_folders)
    if number == errno.EIO:
        with pytest.raises(OSError, match="Input/output error"):
            counted(tmp_path)
        return
    counted(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [COMPLETE, "0.txt", "1.txt"]
