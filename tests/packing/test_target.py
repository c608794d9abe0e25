"""Shards that go to object storage, here a folder behind the same seam: whole or not there, whoever else is at work."""

import pickle
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from pipeline.errors import AlreadyComplete, InputError
from pipeline.format.manifest import MANIFEST
from pipeline.packing import target
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack, pack_part
from pipeline.packing.target import ShardPlace, await_files
from pipeline.parts import Part
from pipeline.remote_resume import BEGUN, NEWEST, WRITER
from pipeline.resume import COMPLETE, UNFINISHED
from pipeline.storage import Folder
from tests.samples import files_below, write, write_sets

HOW = PackOptions(workers=1, sets_per_shard=3)
OTHERWISE = PackOptions(workers=1, sets_per_shard=3, seed=1)


class Bucket(Folder):
    """Tells of each request that changes it, or asks what there is, before it happens."""

    def __init__(self, location: Path, before: Callable[[str, str], None] = lambda request, name: None) -> None:
        super().__init__(location)
        self.before = before

    def put(self, name: str, content: bytes | Path) -> None:
        self.before("put", name)
        super().put(name, content)

    def create(self, name: str, content: bytes) -> bool:
        self.before("create", name)
        return super().create(name, content)

    def remove(self, name: str) -> None:
        self.before("remove", name)
        super().remove(name)

    def names(self, prefix: str = "") -> list[str]:
        self.before("names", prefix)
        return super().names(prefix)


class At:
    """Does something else at one of the requests of a run, by its number; without it, counts them."""

    def __init__(self, moment: int, action: Callable[[], Any]) -> None:
        self.moment, self.action, self.requests = moment, action, list[tuple[str, str]]()

    def __call__(self, request: str, name: str) -> None:
        self.requests.append((request, name))
        if len(self.requests) == self.moment:
            self.action()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight sets, which make three shards."""
    return write_sets(tmp_path_factory.mktemp("small") / "source", 2, 4)


@pytest.fixture(scope="module")
def expected(small: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a packing into a folder, with the record of its arguments."""
    shards = tmp_path_factory.mktemp("expected") / "shards"
    pack(small, shards, HOW)
    return files_below(shards) | {COMPLETE: (shards / COMPLETE).read_bytes()}


def objects(folder: Path) -> dict[str, bytes]:
    """All objects, but for the time of the source."""
    return {name: (folder / name).read_bytes() for name in Folder(folder).names() if name != NEWEST}


def requests_of(small: Path, folder: Path) -> list[tuple[str, str]]:
    """What a packing asks of a bucket."""
    at = At(0, lambda: None)
    pack(small, Bucket(folder, at), HOW)
    return at.requests


def test_objects_are_the_files_of_a_packing_into_a_folder(
    small: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    requests = requests_of(small, tmp_path)
    assert objects(tmp_path) == expected
    writes = [name for request, name in requests if request in ("put", "create") and not name.startswith(WRITER)]
    for shard in ("sets-000000", "sets-000001", "sets-000002"):
        places = [writes.index(name) for name in (f"{shard}.tar", f"{shard}.idx", f"{UNFINISHED}/{shard}.npz")]
        assert places == list(range(places[0], places[0] + 3)), "the record comes when all that it tells of is there"
    assert (writes[0], writes[-1]) == (BEGUN, MANIFEST)
    assert requests[writes.index(MANIFEST) :].count(("create", MANIFEST)) == 1
    assert len(set(writes)) == len(writes)


def test_the_same_again_is_complete_and_others_are_refused(
    small: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    pack(small, Folder(tmp_path), HOW)
    with pytest.raises(AlreadyComplete, match=f"^{tmp_path}: already complete: 8 sets on 2 backgrounds in 3 shards$"):
        pack(small, Folder(tmp_path), HOW)
    with pytest.raises(InputError, match="holds a complete fgbg-pack with seed 0, now it is 1"):
        pack(small, Folder(tmp_path), OTHERWISE)
    assert objects(tmp_path) == expected
    write(tmp_path / NEWEST, b"1")
    with pytest.raises(InputError, match="is complete, but a file of its source was changed since"):
        pack(small, Folder(tmp_path), HOW)
    write(tmp_path / NEWEST, b"no number")
    (tmp_path / "sets-000001.idx").unlink()
    with pytest.raises(InputError, match=r"was complete, and sets-000001.idx is gone: copy it again, or remove"):
        pack(small, Folder(tmp_path), HOW)


@pytest.mark.parametrize("found", ["manifest.json", "mine.txt", "below/mine.txt"])
def test_a_place_in_use_is_left_as_it_is(found: str, small: Path, tmp_path: Path) -> None:
    write(tmp_path / found, b"mine")
    with pytest.raises(InputError, match=f"is not empty \\(it holds {found}\\): give a new or an empty place"):
        pack(small, Folder(tmp_path), HOW)
    assert objects(tmp_path) == {found: b"mine"}


class Killed(BaseException):
    """Stands for the end of the process where nothing may be tidied up: the bucket fails from now on."""


def killed(bucket: Bucket) -> Callable[[], None]:
    def kill() -> None:
        def gone(request: str, name: str) -> None:
            raise ConnectionAbortedError("it is killed")

        bucket.before = gone
        raise Killed

    return kill


def test_what_is_done_is_not_put_twice(small: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    count = len(requests_of(small, tmp_path / "whole"))
    put = []
    for moment in range(1, count + 1, 3):
        folder = tmp_path / str(moment)
        bucket = Bucket(folder)
        bucket.before = At(moment, killed(bucket))
        with pytest.raises(Killed):
            pack(small, bucket, HOW)
        before = set(Folder(folder).names()) if folder.exists() else set()
        at = At(0, lambda: None)
        try:
            pack(small, Bucket(folder, at), HOW)
        except AlreadyComplete:
            assert MANIFEST in before
        assert objects(folder) == expected
        again = {name for request, name in at.requests if request == "put" and name.startswith("sets-")}
        assert not again & {f"{Path(name).stem}.tar" for name in before if name.endswith(".npz")}
        put.append(len(again))
    assert put == sorted(put, reverse=True)
    assert (put[0], put[-1]) == (6, 0)


@pytest.mark.parametrize(("moment", "stopped"), [(3, False), (3, True), (4, True)])
def test_another_part_while_one_begins(
    moment: int, stopped: bool, small: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """It is no stranger whose objects are in the way, and a part that is stopped then leaves it what it needs."""

    def other() -> None:
        pack_part(small, Folder(tmp_path), HOW, Part(1, 2))
        if stopped:
            raise KeyboardInterrupt

    bucket = Bucket(tmp_path, At(moment, other))
    with suppress(KeyboardInterrupt):
        pack_part(small, bucket, HOW, Part(0, 2))
    pack_part(small, Folder(tmp_path), HOW, Part(0, 2))
    pack(small, Folder(tmp_path), HOW, finish=True)
    assert objects(tmp_path) == expected


def test_a_part_that_another_process_has_finished_meanwhile_is_not_written_again(
    small: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    for number in range(2):
        pack_part(small, Folder(tmp_path), HOW, Part(number, 2))
    bucket = Bucket(tmp_path)
    bucket.before = At(4, lambda: pack(small, Folder(tmp_path), HOW, finish=True))
    with pytest.raises(InputError, match="just now: give the same command again"):
        pack_part(small, bucket, HOW, Part(0, 2))
    assert objects(tmp_path) == expected


@pytest.mark.parametrize("how", [HOW, OTHERWISE], ids=["same", "other"])
def test_another_writer_at_any_moment(
    how: PackOptions, small: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """A whole run within another one, which has begun, before each of its requests."""
    count = len(requests_of(small, tmp_path / "whole"))
    refused = 0
    for moment in range(3, count + 1, 4):
        folder, said = tmp_path / str(moment), list[str]()

        def other(folder: Path = folder, said: list[str] = said) -> None:
            try:
                pack(small, Folder(folder), how)
            except InputError as error:
                said.append(str(error))
            except AlreadyComplete:
                pass

        try:
            pack(small, Bucket(folder, At(moment, other)), HOW)
        except (AlreadyComplete, InputError) as error:
            said.append(str(error))
        assert objects(folder) == expected
        refused += sum("fgbg-pack with seed 0, now it is 1" in line for line in said)
        assert len(said) <= 1
    assert refused == (0 if how is HOW else len(range(3, count + 1, 4)))


def test_an_input_error_takes_all_away_unless_another_process_is_at_work(small: Path, tmp_path: Path) -> None:
    source = write_sets(tmp_path / "source", 2, 4)
    [*_, last] = sorted((source / "fg_bg").rglob("*.jpg"))
    last.write_bytes(last.read_bytes()[:500])
    strict = PackOptions(workers=1, sets_per_shard=3, strict=True)
    with pytest.raises(InputError, match="undecodable"):
        pack(source, Folder(tmp_path / "alone"), strict)
    assert objects(tmp_path / "alone") == {}
    folder = tmp_path / "two"
    with pytest.raises(InputError, match="undecodable") as stopped:
        pack(source, Bucket(folder, At(4, lambda: Folder(folder).put(f"{WRITER}other", b""))), strict)
    assert stopped.value.__notes__ == [f"what is done stays in {folder}, where another process may be at work"]
    assert {BEGUN, f"{WRITER}other"} < set(objects(folder))


def test_an_interrupted_run_says_that_it_goes_on(small: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    for moment, kept in ((2, False), (9, True)):
        with pytest.raises(KeyboardInterrupt) as stopped:
            pack(small, Bucket(tmp_path, At(moment, interrupt)), HOW)
        note = f"what is done is kept in {tmp_path}: the same command continues it"
        assert getattr(stopped.value, "__notes__", []) == [note] * kept
        assert bool(objects(tmp_path)) == kept
    with pytest.raises(InputError, match="holds an unfinished fgbg-pack with seed 0, now it is 1: continue with"):
        pack(small, Folder(tmp_path), OTHERWISE)
    pack(small, Folder(tmp_path), HOW)
    assert objects(tmp_path) == expected


def test_other_bytes_under_the_same_names_are_told(small: Path, tmp_path: Path) -> None:
    for name, request in (("sets-000000.tar", ("put", "preview.jpg")), (MANIFEST, ("create", MANIFEST))):
        moment = requests_of(small, tmp_path / f"whole-{name}").index(request) + 1
        folder = tmp_path / name
        bucket = Bucket(folder, At(moment, partial(Folder(folder).put, name, b"other")))
        with pytest.raises(OSError, match="another process has written other bytes there") as error:
            pack(small, bucket, HOW)
        assert error.value.filename == str(folder / name)


def test_a_place_is_sent_to_a_worker_which_keeps_its_connection(tmp_path: Path) -> None:
    place = ShardPlace(tmp_path / "sets-000000.tar", tmp_path / "sets-000000.npz", Folder(tmp_path))
    one, other = (pickle.loads(pickle.dumps(place)) for _ in range(2))
    assert (one.path, one.record, one.remote.location) == (place.path, place.record, tmp_path)
    assert one.remote is other.remote
    assert pickle.loads(pickle.dumps(ShardPlace(tmp_path, tmp_path))).remote is None


def test_what_another_machine_has_written_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "LATE_SEC", 0.02)
    with pytest.raises(FileNotFoundError, match="a node has written it, but not here: is this one folder on all nod"):
        await_files([tmp_path / "late"])
    monkeypatch.setattr(target, "LATE_SEC", 10.0)
    writer = Timer(0.02, (tmp_path / "late").touch)
    writer.start()
    await_files([tmp_path / "late"])
    assert (tmp_path / "late").exists()
    writer.join()
