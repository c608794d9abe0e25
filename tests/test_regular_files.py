"""What has the name of a file in a folder from elsewhere and is none, or leads out, ends a command in one line."""

import os
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.format.manifest import Manifest, load_index
from pipeline.loading.interop import as_webdataset
from pipeline.loading.shard_reader import Damaged, ShardReader
from pipeline.regular_files import FOLLOW_LINKS, open_regular
from pipeline.storage import Folder
from pipeline.verify.check import CheckOptions, check
from pipeline.verify.merge import _require_idx
from pipeline.verify.repair import repair
from tools.bench_loader import first_shards


def put_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's name has at most 107 bytes
        try:
            end.bind(path.name)
        finally:
            os.chdir(here)


def put_link(path: Path) -> None:
    elsewhere = path.parent.with_name("elsewhere")
    elsewhere.mkdir()
    shutil.copy(path.with_name(f"{path.name}.was"), elsewhere / path.name)
    path.symlink_to(elsewhere / path.name)


KINDS: dict[str, Callable[[Path], None]] = {
    "a pipe, not a regular file": os.mkfifo,
    "a socket, not a regular file": put_socket,
    "a device, not a regular file": lambda path: path.symlink_to("/dev/zero"),
    "a folder, not a regular file": Path.mkdir,
    "a link that leads out of its folder; put": put_link,
}


@pytest.fixture
def shards(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "shards"))


def replaced(shards: Path, name: str, put: Callable[[Path], None]) -> Path:
    path = shards / name
    path.rename(shards / f"{name}.was")
    put(path)
    return shards


def line_of(action: Callable[[], object]) -> str:
    """The message that an action ends with."""
    with pytest.raises((InputError, Damaged)) as caught:
        action()
    return str(caught.value)


@pytest.mark.parametrize("what", KINDS)
def test_only_regular_files_are_opened(what: str, shards: Path) -> None:
    path = replaced(shards, "sets-000001.tar", KINDS[what]) / "sets-000001.tar"
    assert line_of(lambda: open_regular(path)).startswith(f"{path} is {what}")


@pytest.mark.parametrize("what", KINDS)
def test_every_reader_of_a_shard_says_so(what: str, shards: Path) -> None:
    replaced(shards, "sets-000001.tar", KINDS[what])
    assert f"sets-000001.tar cannot be read ({what}" in line_of(lambda: ShardReader.open(shards).read(20))
    assert any(f"it cannot be read ({what}" in line for line in check(shards, CheckOptions(workers=1)).damage)
    assert f"sets-000001.tar is {what}" in line_of(lambda: as_webdataset(shards))
    assert f"sets-000001.tar is {what}" in line_of(lambda: first_shards(shards, 100).__enter__())
    assert f"sets-000001.tar is {what}" in line_of(lambda: repair(shards))


@pytest.mark.parametrize("name", ["manifest.json", "index.npy", "backgrounds.tar"])
def test_so_does_every_reader_of_the_other_files(name: str, shards: Path) -> None:
    what = "a pipe, not a regular file"
    replaced(shards, name, os.mkfifo)

    def read() -> object:
        return load_index(shards, Manifest.load(shards))

    if name == "backgrounds.tar":

        def read() -> object:
            return ShardReader.open(shards).read_background(3)

    assert re.search(rf"{re.escape(name)} (is|cannot be read) \(?{what}", line_of(read))


def test_links_are_followed_within_the_folder_by_hash_and_when_told(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reads() -> bool:
        return all(part.size for part in ShardReader.open(shards).read(20))

    tar = shards / "sets-000001.tar"
    kept = tar.rename(shards / "kept.tar")
    tar.symlink_to(kept.name)
    assert reads()
    tar.unlink()
    digest = Manifest.load(shards).shards[1].sha256
    tar.symlink_to(kept.rename(shards.parent / digest))  # as in the caches of Hugging Face and git-annex
    assert reads()
    tar.unlink()
    tar.symlink_to((shards.parent / digest).rename(shards.parent / "sets-000001.tar"))
    with pytest.raises(Damaged, match="a link that leads out of its folder"):
        reads()
    monkeypatch.setenv(FOLLOW_LINKS, "1")
    assert reads()


def test_merging_takes_no_idx_that_is_something_else(shards: Path, tmp_path: Path) -> None:
    idx = shards / "sets-000000.idx"
    _require_idx(Folder(shards), idx.name, 16)
    (tmp_path / "secret").write_text("secret")
    idx.unlink()
    idx.symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="a link that leads out of its folder"):
        _require_idx(Folder(shards), idx.name, 16)
    idx.unlink()
    idx.write_text("secret")
    with pytest.raises(InputError, match=r"sets-000000\.idx is not the index of 16 sets: rebuild it"):
        _require_idx(Folder(shards), idx.name, 16)


@pytest.mark.parametrize("name", [".index.npy.partial", ".manifest.json.partial"])
def test_a_repair_writes_through_no_link(name: str, shards: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (shards / name).symlink_to(tmp_path / "precious")
    repair(shards)
    assert (tmp_path / "precious").read_text() == "precious"
    assert not check(shards, CheckOptions(workers=1)).damage


@pytest.mark.parametrize("text", ["[]", "{", "[" * 10**5, '{"command": 5}'])
def test_records_of_a_run_from_elsewhere(text: str, shards: Path) -> None:
    (shards / ".unfinished").mkdir()
    (shards / ".unfinished" / "arguments.json").write_text(text)
    with pytest.raises(InputError, match=r"arguments\.json is damaged .*: remove .*, then begin again"):
        repair(shards)


def test_records_that_lie_elsewhere(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (shards / ".unfinished").symlink_to(tmp_path / "home")
    with pytest.raises(InputError, match=r"\.unfinished is a link, which no run makes: remove it"):
        repair(shards)
    assert not list((tmp_path / "home").iterdir())


def test_a_sparse_tar_is_not_read_to_its_end(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.verify.scan.MAX_LOST_BYTES", 1 << 20)
    os.truncate(shards / "sets-000001.tar", 1 << 40)
    damage = check(shards, CheckOptions(workers=1)).damage
    assert any("1,099,511,627,776 bytes" in line and "not read" in line for line in damage), damage
