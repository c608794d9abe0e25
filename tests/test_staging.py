import os
import tempfile
import time
from pathlib import Path

import pytest

from pipeline.staging import NEW_SEC, PREFIX, staging_folder
from tests.samples import write


def test_a_staging_folder_is_removed_and_so_are_those_of_killed_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    new, left = tmp_path / f"{PREFIX}new", tmp_path / f"{PREFIX}left"
    for folder in (new, left, tmp_path / "mine"):
        write(folder / "sets-000000.tar", b"half")
    with staging_folder() as used:
        write(used / "a", b"")
        for folder in (used, left, tmp_path / "mine"):
            os.utime(folder, (0, time.time() - NEW_SEC - 1))
        with staging_folder() as other:
            assert sorted(tmp_path.iterdir()) == sorted([used, other, new, tmp_path / "mine"])
            assert (used / "a").exists()
    assert sorted(tmp_path.iterdir()) == [new, tmp_path / "mine"]
