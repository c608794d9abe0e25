"""Commands that write shards to object storage: the same bytes as in a folder, through kills and faults, by several."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipeline.errors import InputError
from pipeline.format.manifest import Manifest
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack, pack_part
from pipeline.parts import Part
from pipeline.resume import UNFINISHED
from pipeline.storage import Url, storage_of
from tests.commands import command
from tests.networks import weighted_sum
from tests.samples import files_below, write_sets
from tests.services.faulty_proxy import Faults, FaultyProxy
from tests.services.fixtures import S3Server

# Each child packs to the same URL. Those with a moment are killed while they put the object of that number.
KILLED = """
import os, random, signal, sys
from pathlib import Path
from threading import Timer
from pipeline.errors import AlreadyComplete
from pipeline.object_storage import ObjectStorage
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack
from pipeline.storage import location_of

put, puts = ObjectStorage.put, 0

def child(moment):
    if pid := os.fork():
        return pid
    def counted(*arguments):
        global puts
        puts += 1
        if puts == moment:
            Timer(random.Random(moment).uniform(0, 0.01), os.kill, (os.getpid(), signal.SIGKILL)).start()
        put(*arguments)
        if puts == moment:
            signal.pause()
    ObjectStorage.put = counted
    try:
        pack(Path(sys.argv[1]), location_of(sys.argv[2]), PackOptions(workers=1, sets_per_shard=5))
    except AlreadyComplete:
        pass
    except BaseException as error:
        print(type(error), error, file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)

for moment in (2, 4, 6, 9):
    code = os.waitstatus_to_exitcode(os.waitpid(child(moment), 0)[1])
    assert code == -signal.SIGKILL, code
both = [child(0), child(0)]
sys.exit(any(os.waitpid(pid, 0)[1] for pid in both))
"""


# All parts pack to the same URL at once, each killed while it puts the object of its moment; then again, unharmed.
KILLED_PARTS = (
    KILLED.partition("try:")[0].replace("child(moment)", "child(number, moment)")
    + """try:
        pack_part(Path(sys.argv[1]), location_of(sys.argv[2]), HOW, Part(number, 3))
    except BaseException as error:
        print(type(error), error, file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)

from pipeline.packing.pack import pack_part
from pipeline.parts import Part

HOW = PackOptions(workers=1, sets_per_shard=2)
for moments in ((2, 5, 3), (0, 0, 0)):
    parts = [child(number, moment) for number, moment in enumerate(moments)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in parts]
    assert codes == [-signal.SIGKILL if moment else 0 for moment in moments], codes
"""
)


def objects(place: Url) -> dict[str, bytes]:
    """All objects below a URL, but for what is kept of a complete command."""
    storage = storage_of(place)
    return {name: storage.read_all(name) for name in storage.names() if not name.startswith(".")}


def test_killed_and_then_given_twice_at_once_through_faults(
    s3: Url, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, place = write_sets(tmp_path / "source", 3, 5), s3 / "shards"
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    methods = (b"GET", b"PUT", b"POST", b"DELETE")
    faults = Faults(unavailable=0.05, reset=0.05, short=0.05, cut=0.05, lost=0.05, methods=methods)
    with FaultyProxy(s3_server.port, faults) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        script = [sys.executable, "-c", KILLED, str(source), str(place)]
        done = subprocess.run(script, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert proxy.counts["unavailable"] + proxy.counts["reset"] + proxy.counts["lost"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3_server.port}")
    pack(source, tmp_path / "shards", PackOptions(workers=1, sets_per_shard=5))
    assert objects(place) == files_below(tmp_path / "shards")
    assert storage_of(place).names(UNFINISHED) == []


def test_killed_parts(s3: Url, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, place, how = write_sets(tmp_path / "source", 3, 5), s3 / "shards", PackOptions(workers=1, sets_per_shard=2)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    script = [sys.executable, "-c", KILLED_PARTS, str(source), str(place)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    with pytest.raises(InputError, match="is unfinished: when all of its 3 parts are written, give the same fgbg-pack"):
        Manifest.load(place)
    storage_of(place).remove(f"{UNFINISHED}/sets-000004.npz")
    with pytest.raises(InputError, match="1 of 8 shards are missing, of part 1 "):
        pack(source, place, how, finish=True)
    assert pack_part(source, place, how, Part(1, 3)).done == (Part(1, 3), 3, 2, 8)
    pack(source, place, how, finish=True)
    pack(source, tmp_path / "shards", how)
    assert objects(place) == files_below(tmp_path / "shards")
    assert storage_of(place).names(UNFINISHED) == []


def run(name: str, *words: object) -> str:
    result = CliRunner().invoke(command(name), [str(word) for word in words])
    assert result.exception is None, result.output
    return result.output


def test_every_command_that_writes_shards(s3: Url, tmp_path: Path) -> None:
    sources = [write_sets(tmp_path / "one", 2, 3), tmp_path / "two"]
    for path in sorted((tmp_path / "one").rglob("*.jp*g")):
        other = sources[1] / str(path.relative_to(sources[0])).replace("_00", "_01")
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_bytes(path.read_bytes())
    network = weighted_sum(tmp_path / "net.onnx")
    made: dict[str, list[Any]] = {
        "synthetic": ["fgbg-compose", "--synthetic", "--sets", 3, "--streets", 2, "--cars", 2, "--workers", 1],
        "one-bare": ["fgbg-pack", sources[0], "--no-depth", "--sets-per-shard", 2, "--workers", 2],
        "two-bare": ["fgbg-pack", sources[1], "--no-depth", "--codec", "jpeg", "--workers", 1],
        "deep": ["fgbg-depth", "one-bare", "--model", network],
        "merged": ["fgbg-pack", "--merge", "one-bare", "two-bare"],
    }
    for name, words in made.items():
        for place in (tmp_path / "shards", s3):
            where = [place / word if word in made else word for word in words]
            run(*where, "--shards", place / name)
            assert "already complete: " in run(*where, "--shards", place / name)
        assert objects(s3 / name) == files_below(tmp_path / "shards" / name)
    wrong = CliRunner().invoke(command("fgbg-pack"), [str(sources[1]), "--shards", f"{s3}/one-bare"])
    assert f"{s3}/one-bare holds a complete fgbg-pack with sets_per_shard 2, now it is 1000" in wrong.output
    pages = CliRunner().invoke(command("fgbg-pack"), [str(sources[1]), "--shards", "http://127.0.0.1:9/shards"])
    assert "a web server is only read from: give a folder" in pages.output
