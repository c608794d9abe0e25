import errno
import fcntl
import json
import os
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.locks import LOCK, OWNED, Owner, held, locked
from tests.samples import files_below

UNABLE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.EBADF)


def without_locks(monkeypatch: pytest.MonkeyPatch, number: int = errno.ENOLCK) -> None:
    """Let flock fail, as on NFS without its lock service, and Lustre mounted without -o flock."""

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


def own(folder: Path, owner: object) -> None:
    (folder / OWNED).write_text(json.dumps(owner))


@pytest.mark.parametrize("number", [0, *UNABLE])
def test_one_at_a_time_on_any_file_system(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if number:
        without_locks(monkeypatch, number)
    for _ in range(2):
        with locked(tmp_path):
            assert [*files_below(tmp_path)] == [OWNED if number else LOCK]
            with (
                pytest.raises(InputError, match=f"is at work in {tmp_path}: wait for it, or stop it"),
                locked(tmp_path),
            ):
                pass
        assert files_below(tmp_path) == {}


def test_a_failing_disk_is_no_missing_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_locks(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output error") as failed, locked(tmp_path):
        pass
    assert failed.value.filename == str(tmp_path / LOCK)


def test_a_lock_file_is_left_by_a_kill_where_the_system_locks_it(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_bytes(b"")
    with locked(tmp_path):
        pass
    assert files_below(tmp_path) == {}


def test_without_locks_the_owner_is_told_and_taken_over_once_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch)
    with subprocess.Popen(["sleep", "60"]) as process:
        owner = Owner.of_process(process.pid)
        assert owner
        own(tmp_path, owner)
        told = f"process {process.pid} of {owner.host} is at work in {tmp_path}: .* remove {tmp_path / OWNED}"
        with pytest.raises(InputError, match=told), locked(tmp_path):
            pass
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with locked(tmp_path):  # it has ended, though nobody has asked how
            pass
        own(tmp_path, owner)
    with locked(tmp_path):
        pass
    assert files_below(tmp_path) == {}


def test_without_locks_an_owner_of_which_nothing_is_known_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch)
    owner = Owner.of_process(os.getpid())
    assert owner
    boot, space, ticks = owner.started.split()
    elsewhere = (
        owner._replace(host="elsewhere"),
        owner._replace(started=f"another-boot {space} {ticks}"),
        owner._replace(started=f"{boot} 1 {ticks}"),  # in another container
    )
    for unknown in (*elsewhere, None, "", 3, [1], ["here", -1, ""], ["here", "1", ""], ["here", 1 << 70, ""]):
        own(tmp_path, unknown)
        with pytest.raises(InputError, match=f"if it runs no more, remove {tmp_path / OWNED}"), locked(tmp_path):
            pass
    own(tmp_path, owner._replace(started=f"{boot} {space} 1"))  # an earlier process had our number
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("number", [0, errno.ENOLCK])
def test_a_lock_is_waited_for(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if number:
        without_locks(monkeypatch, number)
    monkeypatch.setattr("pipeline.locks.PAUSE_SEC", 0.0)
    monkeypatch.setattr("pipeline.locks.TELL_SEC", 0.0)
    with ExitStack() as other:
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(socket, "gethostname", lambda: "elsewhere")
            other.enter_context(locked(tmp_path))
        said = list[str]()

        def say(line: str) -> None:
            said.append(line)
            other.close()

        with locked(tmp_path, patience_sec=60.0, say=say):
            assert [*files_below(tmp_path)] == [OWNED if number else LOCK]
        with (
            locked(tmp_path),
            pytest.raises(InputError, match="is at work in"),
            locked(tmp_path, patience_sec=60.0, say=pytest.fail),
        ):
            pass
    [line] = said
    assert f"is at work in {tmp_path}: wait for it, or stop it" in line
    assert line.endswith("; looking for up to 60 s whether it ends")


def test_without_locks_one_that_is_not_renewed_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_locks(monkeypatch)
    monkeypatch.setattr("pipeline.locks.PAUSE_SEC", 0.0)
    monkeypatch.setattr("pipeline.locks.TELL_SEC", 0.0)
    own(tmp_path, Owner("elsewhere", 7, "boot space 1"))
    said = list[str]()
    with locked(tmp_path, patience_sec=0.01, say=said.append):
        assert "elsewhere" not in (tmp_path / OWNED).read_text()
    assert said[-1] == f"{tmp_path}: process 7 of elsewhere, which was at work in it, is gone; this one goes on"
    assert files_below(tmp_path) == {}


def test_without_locks_one_that_is_renewed_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_locks(monkeypatch)
    monkeypatch.setattr("pipeline.locks.PAUSE_SEC", 0.0)
    monkeypatch.setattr("pipeline.locks.TELL_SEC", 0.0)
    own(tmp_path, Owner("elsewhere", 7, "boot space 1"))

    def renew(_: str) -> None:
        os.utime(tmp_path / OWNED, ns=(1, 1))

    refused = pytest.raises(InputError, match=f"process 7 of elsewhere is at work in {tmp_path}")
    with refused, locked(tmp_path, patience_sec=0.01, say=renew):
        pass
    assert [*files_below(tmp_path)] == [OWNED]


def test_without_locks_the_owner_renews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_locks(monkeypatch)
    monkeypatch.setattr("pipeline.locks.RENEW_SEC", 0.001)
    with locked(tmp_path):
        os.utime(tmp_path / OWNED, ns=(1, 1))
        while (tmp_path / OWNED).stat().st_mtime_ns == 1:
            time.sleep(0.001)


def test_without_locks_one_that_was_taken_over_is_left_to_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch)
    with locked(tmp_path):
        (tmp_path / OWNED).unlink()
        own(tmp_path, Owner("elsewhere", 7, "boot space 1"))
    assert [*files_below(tmp_path)] == [OWNED]


def test_one_of_this_machine_is_waited_for_where_it_is_known_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.locks.TELL_SEC", 0.0)
    with ExitStack() as other:
        other.enter_context(locked(tmp_path))
        with locked(tmp_path, patience_sec=60.0, also_here=True, say=lambda _: other.close()):
            assert [*files_below(tmp_path)] == [LOCK]


def test_a_folder_that_its_maker_removes_again_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.locks.TELL_SEC", 0.0)
    with ExitStack() as other:
        other.enter_context(held(tmp_path / "new"))

        def leave(_: str) -> None:
            other.close()
            assert not (tmp_path / "new").exists()

        with held(tmp_path / "new", patience_sec=60.0, also_here=True, say=leave) as is_new:
            assert not is_new
            (tmp_path / "new" / "file").touch()
    assert [*files_below(tmp_path)] == ["new/file"]
