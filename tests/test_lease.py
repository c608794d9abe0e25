import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pipeline.lease
from pipeline.errors import InputError
from pipeline.lease import Lease
from pipeline.locks import Owner
from pipeline.storage import Folder

ELSEWHERE = Owner("elsewhere", 77, "boot 1 2")


def take(folder: Path, said: list[str] | None = None) -> Lease:
    return Lease(Folder(folder), (said if said is not None else []).append)


def written(folder: Path, owner: Owner, renewed: float, *, released: bool = False) -> Path:
    """The lease of another process."""
    path = folder / ".writers/000001"
    path.parent.mkdir()
    path.write_text(json.dumps([owner, renewed, released]))
    return path


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.lease, "PAUSE_SEC", 0.01)
    monkeypatch.setattr(pipeline.lease, "STALE_SEC", 0.1)


def test_of_two_the_second_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    first = take(tmp_path)
    with pytest.raises(InputError, match=rf"process {os.getpid()} of .* is at work in {tmp_path}: wait for it"):
        take(tmp_path)
    first.require()
    first.close()
    first.close()
    said = list[str]()
    take(tmp_path, said).close()
    assert not said


def test_the_lease_of_a_process_that_was_killed_is_taken_over_at_once(tmp_path: Path) -> None:
    code = f"""
import os
from pathlib import Path
from pipeline.lease import Lease
from pipeline.storage import Folder
Lease(Folder(Path({str(tmp_path)!r})), print)
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    said = list[str]()
    take(tmp_path, said).close()
    assert "is gone; this one goes on" in said[0]


def test_one_of_another_machine_is_taken_over_once_it_is_old_or_stale(tmp_path: Path, hasty: None) -> None:
    for name, age_sec in (("old", 3600.0), ("stale", 0.0)):
        (tmp_path / name).mkdir()
        written(tmp_path / name, ELSEWHERE, time.time() - age_sec)
        said = list[str]()
        take(tmp_path / name, said).close()
        assert "process 77 of elsewhere, which was at work in it, is gone" in said[-1]
        assert any("looking for up to" in line for line in said) == (name == "stale")


def test_one_of_another_machine_that_is_renewed_is_not(
    tmp_path: Path, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.lease, "STALE_SEC", 60.0)
    path = written(tmp_path, ELSEWHERE, time.time())

    def renew(line: str) -> None:
        path.write_text(json.dumps([ELSEWHERE, time.time() + 1, False]))

    with pytest.raises(InputError, match="process 77 of elsewhere is at work in"):
        Lease(Folder(tmp_path), renew)


def test_one_that_is_released_while_it_is_looked_at_is_free(tmp_path: Path, hasty: None) -> None:
    path = written(tmp_path, ELSEWHERE, time.time())
    Lease(Folder(tmp_path), lambda line: void(path.write_text(json.dumps([ELSEWHERE, time.time(), True])))).close()
    assert (path.parent / "000002").exists()


def void(value: object) -> None:
    pass


def test_what_was_thought_dead_finds_that_another_has_gone_on_and_ended(tmp_path: Path) -> None:
    first = take(tmp_path)
    Folder(tmp_path).put(".writers/000001", json.dumps([ELSEWHERE, 0, False]).encode())
    take(tmp_path).close()
    with pytest.raises(InputError, match="another process has gone on with it"):
        first.require()
    first.close()


def test_damaged_ones_are_stale_in_the_end(tmp_path: Path, hasty: None) -> None:
    path = written(tmp_path, ELSEWHERE, 0.0)
    for content in (b"", b"[]", b"[[1],2,3]", b"\xff"):
        path.write_bytes(content)
        take(tmp_path).close()
        assert (path.parent / "000002").exists()
        for later in sorted(path.parent.iterdir())[1:]:
            later.unlink()


def test_it_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.lease, "RENEW_SEC", 0.005)
    lease = take(tmp_path)
    path = tmp_path / ".writers/000001"
    first = path.read_bytes()
    while path.read_bytes() == first:
        time.sleep(0.005)
    assert json.loads(path.read_bytes())[1] > json.loads(first)[1]
    lease.close()
