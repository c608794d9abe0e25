import re
import socket
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

import pipeline.locks
from pipeline import parts
from pipeline.errors import AlreadyComplete, InputError
from pipeline.locks import AtWork, locked
from pipeline.parts import LOCKS, Part, require_parts, resumable_part, with_parts
from pipeline.resume import ARGUMENTS, UNFINISHED, require_finished, resumable, unfinished_run
from tests.samples import files_below, write
from tests.test_locks import without_locks

COUNT = {"command": "count", "to": 9}


def count(
    folder: Path, part: Part, error: BaseException | None = None, arguments: Mapping[str, object] = COUNT
) -> None:
    """A part that writes a record, unless there is an error before."""
    with resumable_part(folder, arguments, part, lambda: "9 numbers") as records:
        if error:
            raise error
        write(records / str(part.number), b"")


def finish(folder: Path, arguments: Mapping[str, object] = COUNT) -> None:
    with resumable(folder, {**arguments, "parts": 3}, result=lambda: "9 numbers"):
        write(folder / "numbers.txt", b"123")


def records(folder: Path) -> list[str]:
    return sorted(name.name for name in (folder / UNFINISHED).iterdir() if not name.name.startswith("."))


@pytest.mark.parametrize("of", [1, 2, 3, 7, 9])
@pytest.mark.parametrize("jobs", [0, 1, 6, 7, 8])
def test_each_job_is_in_one_part(of: int, jobs: int) -> None:
    numbers = [list(Part(number, of).numbers(jobs)) for number in range(of)]
    assert sorted(sum(numbers, [])) == list(range(jobs))
    assert max(map(len, numbers)) - min(map(len, numbers)) <= 1


@pytest.mark.parametrize("text", ["8/8", "0/0", "-1/8", "1", "1/2/3", "a/b", "٣/٨", "1 / 8", ""])
def test_what_is_no_part(text: str) -> None:
    with pytest.raises(InputError, match=f"^part {re.escape(text)}: expected I/N"):
        Part.parse(text)


def test_a_part_as_text() -> None:
    assert Part.parse("00/8") == Part(0, 8)
    assert str(Part.parse("7/8")) == "7/8"


def test_parts_that_lack_jobs_are_named_as_slurm_takes_them() -> None:
    done = set(range(100)) - {0, 8, 3, 4, 13, 7, 95}
    with pytest.raises(InputError, match=r"^here: 7 of 100 shards are missing, of parts 0,3-5,7 \(I of --part I/8\): "):
        require_parts("here", done, 100, 8)
    with pytest.raises(InputError, match=r"^here: 1 of 3 shards are missing, of part 2 \(I of --part I/4\): "):
        require_parts("here", {0, 1}, 3, 4)
    with pytest.raises(InputError, match=r"^here: 2 of 3 shards are missing, of parts 1-2 "):
        require_parts("here", {0}, 3, 10**9)
    require_parts("here", {0, 1, 2}, 3, 4)


def test_parts_work_side_by_side_and_keep_their_records(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with ExitStack() as stack:
        for number in range(3):
            where = stack.enter_context(resumable_part(folder, COUNT, Part(number, 3), lambda: ""))
            write(where / str(number), b"")
    assert records(folder) == ["0", "1", "2", ARGUMENTS]
    with pytest.raises(InputError, match="is unfinished: when all of its 3 parts are written, give the same count"):
        require_finished(folder)
    finish(folder)
    assert files_below(folder) == {"numbers.txt": b"123"}
    for part in (Part(2, 3), Part(2, 8)):
        with pytest.raises(AlreadyComplete, match="already complete: 9 numbers"):
            count(folder, part)
    with pytest.raises(AlreadyComplete, match="already complete: 9 numbers"):
        finish(folder)
    with pytest.raises(InputError, match="holds a complete count with to 9, now it is 8"):
        count(folder, Part(0, 3), arguments=COUNT | {"to": 8})


def test_parts_of_something_else_are_refused(tmp_path: Path) -> None:
    count(tmp_path, Part(1, 3))
    before = files_below(tmp_path)
    for part, arguments, why in (
        (Part(0, 3), COUNT | {"to": 8}, "with to 9, now it is 8"),
        (Part(0, 4), COUNT, "with parts 3, now it is 4"),
    ):
        with pytest.raises(InputError, match=f"holds an unfinished count {why}: continue with the same"):
            count(tmp_path, part, arguments=arguments)
    with (
        pytest.raises(InputError, match="holds an unfinished count with parts 3, now it is null"),
        resumable(tmp_path, COUNT, result=lambda: ""),
    ):
        pass
    assert files_below(tmp_path) == before


def test_a_part_is_refused_in_what_is_no_run_of_parts(tmp_path: Path) -> None:
    write(tmp_path / "used" / "mine.txt", b"")
    with pytest.raises(InputError, match=r"used is not empty \(it holds mine.txt\)"):
        count(tmp_path / "used", Part(0, 3))
    with (
        resumable(tmp_path / "whole", COUNT),
        pytest.raises(InputError, match="holds an unfinished count with parts null, now it is 3"),
    ):
        count(tmp_path / "whole", Part(0, 3))
    assert files_below(tmp_path / "used") == {"mine.txt": b""}


def test_the_same_part_twice_at_once_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with resumable_part(tmp_path, COUNT, Part(1, 3), lambda: ""):
        busy = f"another process is at work in {tmp_path}/{UNFINISHED}/{LOCKS}000001"
        with pytest.raises(AtWork, match=f"^{busy}: wait for it"):
            count(tmp_path, Part(1, 3))
    assert caplog.messages == [], "on this machine, it is no lock of one that was lost"


@pytest.mark.parametrize("locks", [True, False])
def test_a_part_takes_the_place_of_one_whose_machine_was_lost(
    locks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if not locks:
        without_locks(monkeypatch)
    monkeypatch.setattr(pipeline.locks, "PAUSE_SEC", 0.0)
    monkeypatch.setattr(pipeline.locks, "TELL_SEC", 0.0)
    monkeypatch.setattr(parts, "STALE_SEC", 0.05)
    count(tmp_path, Part(0, 3))
    (tmp_path / UNFINISHED / f"{LOCKS}000001").mkdir()
    with ExitStack() as lost:
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(socket, "gethostname", lambda: "elsewhere")
            lost.enter_context(locked(tmp_path / UNFINISHED / f"{LOCKS}000001"))
        if locks:  # which the file server frees after a while
            monkeypatch.setattr(parts, "STALE_SEC", 60.0)
            monkeypatch.setattr(parts.log, "warning", lambda line: lost.close())
        count(tmp_path, Part(1, 3))
    assert records(tmp_path) == ["0", "1", ARGUMENTS]
    assert locks or caplog.messages[-1].endswith("is gone; this one goes on")


def test_a_part_of_a_run_that_was_killed_at_its_very_end_is_complete(tmp_path: Path) -> None:
    count(tmp_path, Part(0, 1))
    left = files_below(tmp_path / UNFINISHED)
    with resumable(tmp_path, {**COUNT, "parts": 1}, result=lambda: "9 numbers"):
        write(tmp_path / "numbers.txt", b"123")
    for name, content in left.items():
        write(tmp_path / UNFINISHED / name, content)
    with pytest.raises(AlreadyComplete, match="already complete: 9 numbers"):
        count(tmp_path, Part(0, 1))
    assert not (tmp_path / UNFINISHED).exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), InputError("wrong")])
def test_after_an_error_what_parts_have_done_stays(error: BaseException, tmp_path: Path) -> None:
    count(tmp_path, Part(0, 3))
    with pytest.raises(type(error)) as stopped:
        count(tmp_path, Part(1, 3), error)
    assert stopped.value.__notes__ == [f"what is done is kept in {tmp_path}: the same command continues it"]
    with pytest.raises(type(error)), resumable(tmp_path, {**COUNT, "parts": 3}, result=lambda: ""):
        raise error
    assert records(tmp_path) == ["0", ARGUMENTS]


def test_after_an_error_of_the_only_part_the_place_is_as_before(tmp_path: Path) -> None:
    write(tmp_path / ".gitkeep", b"")
    with (
        resumable_part(tmp_path, COUNT, Part(0, 3), lambda: ""),
        pytest.raises(InputError, match="wrong"),
    ):
        count(tmp_path, Part(1, 3), InputError("wrong"))
    assert records(tmp_path) == [ARGUMENTS], "another one was at work"
    with pytest.raises(InputError, match="wrong"):
        count(tmp_path, Part(1, 3), InputError("wrong"))
    assert files_below(tmp_path) == {".gitkeep": b""}


def test_after_an_error_of_all_parts_a_folder_that_they_have_made_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with pytest.raises(InputError, match="wrong"), resumable_part(folder, COUNT, Part(0, 3), lambda: ""):
        with pytest.raises(InputError, match="wrong"):
            count(folder, Part(1, 3), InputError("wrong"))
        assert folder.exists(), "another one is at work"
        raise InputError("wrong")
    assert not folder.exists()


def test_parts_that_begin_at_once_take_turns(tmp_path: Path) -> None:
    with locked(tmp_path):
        threads = [threading.Thread(target=count, args=(tmp_path, Part(number, 8))) for number in range(8)]
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join()
    assert records(tmp_path) == [*map(str, range(8)), ARGUMENTS]


def test_finishing_takes_the_number_of_parts_from_what_was_begun(tmp_path: Path) -> None:
    count(tmp_path, Part(1, 3))
    assert with_parts(tmp_path, COUNT, unfinished_run(tmp_path), complete=False) == {**COUNT, "parts": 3}
    assert with_parts(tmp_path, COUNT, None, complete=True) == COUNT
    for begun in (None, COUNT, {**COUNT, "parts": "3"}, {**COUNT, "parts": 0}):
        with pytest.raises(InputError, match=f"^{tmp_path} holds no parts to finish: write them first, with --part"):
            with_parts(tmp_path, COUNT, begun, complete=False)
