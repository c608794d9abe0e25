import os
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterable
from importlib.metadata import version
from multiprocessing import active_children
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import webdataset

from benchmarks import peers
from benchmarks.harness import Harness, Loaded, Reference
from benchmarks.peers import LOADERS, missing_peer
from benchmarks.peers_pillow import UNUSED, import_streaming, in_format, open_8_bits, sample, sixteen_bits
from pipeline.errors import InputError
from pipeline.format.images import decode_gray
from pipeline.format.manifest import Manifest
from pipeline.format.sample import PARTS
from pipeline.loading.loader import Loader
from pipeline.loading.shard_reader import ShardReader
from pipeline.resume import UNFINISHED, resumable
from tests.png_files import kinds
from tests.samples import files_below, png
from tools import bench_loader
from tools.bench_loader import LoadOptions

OWN_FORMAT = ("streaming", "litdata")
ROOT = Path(__file__).parents[2]
RUN = """
import sys
from pathlib import Path
from benchmarks.peers import LOADERS
from tools.bench_loader import LoadOptions

def main(name, shards, cache):
    print(*{"streaming", "litdata", "boto3", "transformers", "torchvision"} & set(sys.modules))
    before = set(Path("/dev/shm").iterdir())
    loader = LOADERS[name](Path(shards), LoadOptions(32, 16, "cpu", 1, cache=Path(cache)))
    print(*set(Path("/dev/shm").iterdir()) - before)
    print(sum(batch.sets for batch in loader))

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


def options(cache: Path, workers: int) -> LoadOptions:
    return LoadOptions(batch_size=32, size=16, device="cpu", workers=workers, cache=cache)


def keys(batches: Iterable[Loaded]) -> list[str]:
    return [key for batch in batches for key in batch.keys()]  # noqa: SIM118 - no dict


class FirstRun(NamedTuple):
    """A process that wrote the sets of `packed` for one loader, and loaded them."""

    name: str
    imported: list[str]
    """Packages of peers that it had imported before it asked for one."""
    folder: Path
    """Its "cache", and the folders that its HOME and TMPDIR were."""
    shared_memory: list[Path]
    """What it had in shared memory when the loader was made."""
    sets: int
    """Sets in its epoch."""

    def written(self) -> dict[Path, tuple[int, int]]:
        files = [path for path in (self.folder / "cache").rglob("*") if path.is_file()]
        return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


@pytest.fixture(scope="module", params=OWN_FORMAT)
def first_run(request: pytest.FixtureRequest, packed: Path, tmp_path_factory: pytest.TempPathFactory) -> FirstRun:
    if why := missing_peer(request.param):
        pytest.skip(why)
    folder = tmp_path_factory.mktemp(request.param)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for variable in ("HOME", "TMPDIR"):
        (folder / variable).mkdir()
        environment[variable] = str(folder / variable)
    (folder / "run.py").write_text(RUN)
    command = [sys.executable, str(folder / "run.py"), request.param, str(packed), str(folder / "cache")]
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    imported, shared_memory, sets = output.splitlines()
    return FirstRun(request.param, imported.split(), folder, [Path(path) for path in shared_memory.split()], int(sets))


def test_a_run_leaves_nothing_but_its_sets_in_the_cache(first_run: FirstRun) -> None:
    assert first_run.sets == 100
    [home] = (first_run.folder / "cache").iterdir()
    assert [entry.name for entry in home.iterdir()] == ["sets"]
    assert list((first_run.folder / "HOME").iterdir()) == []
    # A worker that takes long to end is killed by its DataLoader, and leaves Python's own folder for sockets.
    assert [path for path in (first_run.folder / "TMPDIR").iterdir() if not path.name.startswith("pymp-")] == []
    assert [path for path in first_run.shared_memory if path.exists()] == []


def test_every_set_comes_once_an_epoch_in_a_new_order_with_its_own_pictures(first_run: FirstRun, packed: Path) -> None:
    written, processes = first_run.written(), set(active_children())
    loader = LOADERS[first_run.name](packed, options(first_run.folder / "cache", 2))
    first = list(loader)
    difference = Reference(packed, 16).compare(first)  # 100 sets: the last batch of a worker is not full
    assert difference.max <= 1  # of a JPEG they take the luma of its colours, which are cut off at 0 and 255
    assert difference.mean < 1e-4
    assert sum(batch.sets for batch in first) == 100
    second = keys(loader)
    assert sorted(second) == sorted(keys(first))
    assert len({tuple(second), tuple(keys(first)), tuple(sorted(second))}) == 3
    assert first_run.written() == written
    assert len(set(active_children()) - processes) == 2
    del loader
    assert set(active_children()) <= processes


@pytest.mark.parametrize("name", OWN_FORMAT)
def test_a_loader_that_is_not_installed_is_refused_with_the_remedy(
    name: str, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # so that it cannot be imported
    remedy = r"is not installed: install the peers \(make peers, or pip install --no-deps -r peers.txt\), or leave"
    with pytest.raises(InputError, match=remedy) as error:
        LOADERS[name](packed, options(tmp_path, 1))
    assert str(error.value) == missing_peer(name)
    assert list(tmp_path.iterdir()) == []


def test_a_loader_that_is_installed_in_part_is_refused_with_the_remedy(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "litdata", None)
    with pytest.raises(InputError, match=r"import of litdata halted.*: install the peers \(make peers"):
        LOADERS["litdata"](packed, options(tmp_path, 1))


def test_pillow_makes_the_loaders_gray_of_every_kind_of_png() -> None:
    for kind, content in kinds().items():
        if kind.endswith(("bits", "interlaced", "gAMA", "sRGB", "cHRM", "tRNS")) and "no gAMA" not in kind:
            expected = decode_gray(content).astype(int)
            assert np.abs(np.asarray(open_8_bits(content).convert("L")) - expected).max() <= 1, kind
    deep = png(np.arange(65536, dtype=np.uint16).reshape(256, 256))
    read = webdataset.autodecode.Decoder([sixteen_bits, *webdataset.autodecode.default_post_handlers])
    found = read({"__key__": "a", "depth.png": deep})["depth.png"]
    assert np.array_equal(np.asarray(found)[..., 0], decode_gray(deep))


def test_peers_are_imported_only_when_they_are_asked_for(first_run: FirstRun) -> None:
    assert first_run.imported == []


@pytest.mark.parametrize(("name", "resident"), [("ours", "host"), ("ours-resident", "device")])
def test_ours_is_made_as_it_is_asked_for_and_closed(
    name: str, resident: str, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    class Recorded(Loader):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            made.append((arguments, settings))

    monkeypatch.setattr(bench_loader, "Loader", Recorded)
    before = set(threading.enumerate())
    asked = LoadOptions(32, 16, "cpu", 3, prefetch=7, resident="host", hw_decoder_load=0.25)
    loader: Any = LOADERS[name](packed, asked)
    settings = {"batch_size": 32, "size": 16, "device": "cpu", "threads": 3, "prefetch": 7, "resident": resident}
    assert made == [((packed, "all"), {**settings, "hw_decoder_load": 0.25})]
    batches = iter(loader)
    assert next(batches).sets == 32
    loader.close()
    assert set(threading.enumerate()) <= before


def test_dalis_reader_has_its_results_before_they_are_copied(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader: Any = LOADERS["dali-reader"](packed, options(tmp_path, 1))
    run, given = reader._graph.run, list[str]()

    def recorded(stream: str) -> Any:
        given.append(stream)
        return run()

    monkeypatch.setattr(reader._graph, "run", recorded)
    monkeypatch.setattr(peers, "results_stream", "the stream of the copies on a {}".format)
    assert sum(batch.sets for batch in reader) == 100
    assert given == ["the stream of the copies on a cpu"] * 4


def test_nothing_stands_in_for_what_streaming_imports_afterwards() -> None:
    if why := missing_peer("streaming"):
        pytest.skip(why)
    import_streaming()
    assert [name for name in UNUSED if name in sys.modules and sys.modules[name].__spec__ is None] == []


def test_other_formats_get_the_bytes_that_are_in_the_tars(packed: Path) -> None:
    members = {}
    for path in sorted(packed.glob("sets-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                members[member.name] = content.read()
    store = ShardReader.open(packed)
    for row in (0, 17, 99):
        found = sample(store, row)
        assert set(found) == {"key", "bg", *PARTS}
        assert [found[part] for part in PARTS] == [members[f"{store.key(row)}.{part}.jpg"] for part in PARTS]
        assert found["key"] == store.key(row)
        assert found["bg"] == store.index["bg"][row]


class Writer:
    """Writes one file and counts."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.written, self._fault = 0, fault

    def __call__(self, shards: Path, folder: Path, scratch: Path) -> None:
        assert not folder.exists()
        assert not scratch.exists()
        for made in (folder, scratch):
            made.mkdir()
            (made / "file").write_text(shards.name)
        self.written += 1
        if self._fault:
            raise self._fault


def test_a_format_is_written_once_for_the_same_sets(packed: Path, planes: Path, tmp_path: Path) -> None:
    writer, same = Writer(), tmp_path / "same"
    same.mkdir()
    (same / "manifest.json").write_bytes((packed / "manifest.json").read_bytes())
    folders = [in_format("pytest", shards, tmp_path / "cache", writer) for shards in (packed, same, packed, planes)]
    assert folders[0] == folders[1] == folders[2] != folders[3]
    assert writer.written == 2
    home = folders[0].parent
    assert home.name == f"pytest-{version('pytest')}-{Manifest.load(packed).sha256[:16]}"
    assert files_below(home) == {"sets/file": packed.name.encode()}


@pytest.mark.parametrize("fault", [OSError("disk full"), InputError("damaged")])
def test_a_format_that_fails_leaves_nothing(fault: Exception, packed: Path, tmp_path: Path) -> None:
    with pytest.raises(type(fault), match=str(fault)):
        in_format("pytest", packed, tmp_path, Writer(fault))
    assert files_below(tmp_path) == {}
    assert in_format("pytest", packed, tmp_path, Writer()).is_dir()


def test_damaged_sets_are_refused(packed: Path, tmp_path: Path) -> None:
    shards = Path(shutil.copytree(packed, tmp_path / "shards"))
    store = ShardReader.open(shards)
    with (shards / store.shard_name(40)).open("r+b") as file:
        file.seek(int(store.index["offset"][40][1]))
        file.write(b"damage")
    writer = Writer()
    with pytest.raises(InputError, match=f"{store.key(40)}: mask in .* is damaged .*: loaders are compared on whole"):
        in_format("pytest", shards, tmp_path / "cache", writer)
    assert writer.written == 0
    assert files_below(tmp_path / "cache") == {}


def test_a_format_whose_writing_was_killed_is_written_again(packed: Path, tmp_path: Path) -> None:
    folder = in_format("pytest", packed, tmp_path, Writer())
    (folder / "half").write_text("half a shard")
    notes = folder.parent / UNFINISHED
    (notes / ".scratch").mkdir(parents=True)
    (notes / "arguments.json").write_text('{"command": "fgbg-bench for pytest"}')
    writer = Writer()
    assert in_format("pytest", packed, tmp_path, writer) == folder
    assert writer.written == 1
    assert files_below(folder.parent) == {"sets/file": packed.name.encode()}


def test_a_format_that_another_process_writes_is_refused(packed: Path, tmp_path: Path) -> None:
    home = in_format("pytest", packed, tmp_path, Writer()).parent
    (home / "sets" / "file").unlink()
    (home / "sets").rmdir()
    with (
        resumable(home, {"command": "fgbg-bench for pytest"}),
        pytest.raises(InputError, match=r"another process is at work in .*: wait for it, or stop it"),
    ):
        in_format("pytest", packed, tmp_path, Writer())


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves the closing of files to the collector
def test_the_peers_pass_the_comparison(packed: Path, tmp_path: Path) -> None:
    for name in ("dali-reader", "seed", "webdataset"):
        verified = Harness(LOADERS[name], packed, packed, LoadOptions(32, 16, "cpu", 1, cache=tmp_path)).verify()
        assert verified.difference.mean <= 0.6
