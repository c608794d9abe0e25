"""A packing in parts, in any order, killed or not, ends in the bytes of one that is not divided."""

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import AlreadyComplete, InputError, MachineError
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack, pack_part
from pipeline.parts import Part
from pipeline.resume import ARGUMENTS, COMPLETE, UNFINISHED
from pipeline.storage import Folder, Storage
from pipeline.workers import Progress
from tests.miniatures import write_zip
from tests.packing.test_target import Bucket, objects
from tests.samples import files_below, jpeg, overlay, set_paths, smooth_picture, soft_disc, write, write_sets

HOW = PackOptions(workers=1, sets_per_shard=3)
Place = Callable[[Path], Path | Storage]
PLACES = pytest.mark.parametrize("place", [Path, Bucket], ids=["folder", "bucket"])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine sets, one of them damaged, and one incomplete, with a table: three shards."""
    source = write_sets(tmp_path_factory.mktemp("small") / "source", 2, 5)
    write(source / set_paths(1, 1, 6)[1], b"")
    (source / set_paths(0, 3, 3)[2]).unlink()
    write(source / "labels.csv", b"key,colour\nfg_001_bg_000_000001,red\nfg_002_bg_001_000007,blue\n")
    return source


@pytest.fixture(scope="module")
def expected(small: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a packing that is not divided, with the record of its arguments."""
    shards = tmp_path_factory.mktemp("expected") / "shards"
    pack(small, shards, HOW)
    assert b"undecodable" in (shards / "problems.csv").read_bytes()
    assert (shards / "labels.csv").read_bytes().count(b"\n") == 3
    return files_below(shards) | {COMPLETE: (shards / COMPLETE).read_bytes()}


@PLACES
@pytest.mark.parametrize("of", [2, 5])
def test_parts_in_any_order_make_the_same_bytes(
    of: int, place: Place, small: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    numbers = random.Random(of).sample(range(of), of)
    parts = [pack_part(small, place(tmp_path), HOW, Part(number, of)) for number in numbers]
    assert [part.done.jobs for part in parts] == [len(range(number, 3, of)) for number in numbers]
    assert (sum(part.sets for part in parts), sum(part.left_out["undecodable"] for part in parts)) == (8, 1)
    summary = pack(small, place(tmp_path), HOW, finish=True)
    assert summary.manifest.sets == 8
    assert +summary.left_out == {"undecodable": 1, "incomplete": 1}
    assert objects(tmp_path) == expected
    for again in (
        lambda: pack(small, place(tmp_path), HOW, finish=True),
        lambda: pack_part(small, place(tmp_path), HOW, Part(0, of)),
        lambda: pack(small, place(tmp_path), HOW),
    ):
        with pytest.raises(AlreadyComplete, match="already complete: 8 sets on 2 backgrounds in 3 shards"):
            again()
    assert objects(tmp_path) == expected


def test_a_compressed_source_as_planes(tmp_path: Path) -> None:
    """What a run keeps for itself, here the unpacked source and the backgrounds as planes, is each part's own."""
    source = write_sets(tmp_path / "source", 2, 4)
    subprocess.run(["tar", "-C", str(source), "-czf", str(tmp_path / "source.tgz"), "."], check=True)
    how = PackOptions(workers=1, sets_per_shard=3, codec="planes", size=24)
    for number in range(2):
        pack_part(tmp_path / "source.tgz", tmp_path / "parts", how, Part(number, 2))
    pack(tmp_path / "source.tgz", tmp_path / "parts", how, finish=True)
    pack(tmp_path / "source.tgz", tmp_path / "whole", how)
    assert files_below(tmp_path / "parts") == files_below(tmp_path / "whole")


@PLACES
def test_finishing_before_all_parts_are_there_names_them_and_writes_nothing(
    place: Place, small: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="holds no parts to finish: write them first, with --part 0/N to N-1/N"):
        pack(small, place(tmp_path), HOW, finish=True)
    assert not objects(tmp_path)
    pack_part(small, place(tmp_path), HOW, Part(1, 4))
    before = files_below(tmp_path)
    with pytest.raises(InputError, match=r"2 of 3 shards are missing, of parts 0,2 \(I of") as refused:
        pack(small, place(tmp_path), HOW, finish=True)
    assert not hasattr(refused.value, "__notes__")
    assert files_below(tmp_path) == before
    assert {name for name in before if not name.startswith(".")} == {"sets-000001.tar", "sets-000001.idx"}


@PLACES
def test_a_part_again_does_nothing_and_other_arguments_are_refused(place: Place, small: Path, tmp_path: Path) -> None:
    assert pack_part(small, place(tmp_path), HOW, Part(0, 2)).done == (Part(0, 2), 2, 0, 3)
    before, sets = files_below(tmp_path), list[int]()
    progress = Progress(sets_found=sets.append, sets_done=sets.append)
    assert pack_part(small, place(tmp_path), HOW, Part(0, 2), progress).done == (Part(0, 2), 2, 2, 3)
    assert sets == [6, 6], "of the part's own sets, all are done"
    for how, part, why in (
        (PackOptions(workers=1, sets_per_shard=3, seed=1), Part(0, 2), "seed 0, now it is 1"),
        (HOW, Part(1, 3), "parts 2, now it is 3"),
    ):
        with pytest.raises(InputError, match=f"holds an unfinished fgbg-pack with {why}: continue with the same"):
            pack_part(small, place(tmp_path), how, part)
    with pytest.raises(InputError, match="with parts 2, now it is null"):
        pack(small, place(tmp_path), HOW)
    assert files_below(tmp_path) == before


@PLACES
def test_a_source_that_has_changed_is_refused(place: Place, tmp_path: Path) -> None:
    source, shards = write_sets(tmp_path / "source", 2, 4), tmp_path / "shards"
    pack_part(source, place(shards), HOW, Part(0, 2))
    write(source / set_paths(0, 0, 0)[0], jpeg(overlay(0, 1), 80))
    for action in (lambda: pack_part(source, place(shards), HOW, Part(1, 2)), lambda: pack(source, shards, HOW)):
        with pytest.raises(InputError, match="holds an unfinished "):
            action()


@PLACES
def test_a_part_that_its_input_stops_leaves_those_of_others(place: Place, tmp_path: Path) -> None:
    source, shards = write_sets(tmp_path / "source", 2, 4), tmp_path / "shards"
    write(source / set_paths(1, 0, 4)[1], b"no mask")
    strict = PackOptions(workers=1, sets_per_shard=1, strict=True)
    failed = list[int]()
    for number in range(4):
        try:
            pack_part(source, place(shards), strict, Part(number, 4))
        except InputError:
            failed.append(number)
    assert len(failed) == 1
    theirs = [range(number, 8, 4) for number in range(4) if number not in failed]
    assert {int(path.stem[5:]) for path in shards.glob("sets-*.tar")} == {shard for part in theirs for shard in part}
    with pytest.raises(InputError, match=f"2 of 8 shards are missing, of part {failed[0]} "):
        pack(source, place(shards), strict, finish=True)


@PLACES
@pytest.mark.parametrize("error", [KeyboardInterrupt(), MachineError("no boto3")])
def test_a_part_that_is_interrupted_goes_on(
    error: BaseException, place: Place, small: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    told = list[int]()

    def interrupt(more: int) -> None:
        told.append(more)
        if len(told) == 2:  # none was done before, and the first shard
            raise error

    with pytest.raises(type(error)) as interrupted:
        pack_part(small, place(tmp_path), HOW, Part(0, 2), Progress(sets_done=interrupt))
    assert interrupted.value.__notes__[-1] == f"what is done is kept in {tmp_path}: the same command continues it"
    assert [pack_part(small, place(tmp_path), HOW, Part(number, 2)).done.earlier for number in (0, 1)] == [1, 0]
    pack(small, place(tmp_path), HOW, finish=True)
    assert objects(tmp_path) == expected


@PLACES
def test_an_error_in_front_of_all_parts_leaves_nothing(place: Place, tmp_path: Path) -> None:
    source, shards = write_sets(tmp_path / "source", 2, 4), tmp_path / "shards"
    write(source / "bg" / "bg_001.jpg", b"no picture")
    with pytest.raises(InputError, match="bg_001"):
        pack_part(source, place(shards), PackOptions(workers=1, strict=True), Part(0, 2))
    assert not Folder(shards).names()
    assert place is not Path or not shards.exists()


# Runs in a fresh interpreter. All parts are packed at once, each killed at a moment of its own; then again, and at last
# unharmed; in the end the finishing is killed in the same way. Moments are file operations below the shards.
KILLED = """
import os, pathlib, random, signal, sys
from pipeline.errors import InputError
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack, pack_part
from pipeline.parts import Part

source, shards, of = pathlib.Path(sys.argv[1]), sys.argv[2], 3
how, killed = PackOptions(workers=1, sets_per_shard=10), 0

def start(moment, action):
    if pid := os.fork():
        return pid
    events = 0
    def happens(event, arguments):
        nonlocal events
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            paths = (os.fsdecode(path) for path in arguments if isinstance(path, (str, bytes, os.PathLike)))
            events += any(shards in path for path in paths)
            if moment and events == moment:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(happens)
    try:
        action()
    except BaseException as error:
        print(type(error), error, file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)

def wait(pid):
    global killed
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    killed += code != 0
    return code

def part(number):
    return lambda: pack_part(source, pathlib.Path(shards), how, Part(number, of))

chance = random.Random(0)
for most in (20, 40, 60, 0):
    parts = [start(chance.randint(1, most) if most else 0, part(number)) for number in range(of)]
    codes = [wait(pid) for pid in parts]
assert not any(codes) and killed > 4, (codes, killed)
for moment in (15, 30, 45, 60, 75, 0):
    if pathlib.Path(shards, ".complete.json").exists():
        break
    wait(start(moment, lambda: pack(source, pathlib.Path(shards), how, finish=True)))
assert killed > 7, killed
"""


def test_killed_parts_go_on_to_the_same_bytes(tmp_path: Path) -> None:
    names = [set_paths(bg, fg, bg * 25 + fg) for bg in range(3) for fg in range(25)]
    parts = jpeg(overlay(0, 2)), jpeg(soft_disc(2002)), jpeg(smooth_picture(3, channels=1))
    files = {path: content for paths in names for path, content in zip(paths, parts, strict=True)}
    files |= {f"bg/{bg}.jpg": jpeg(smooth_picture(0)) for bg in range(3)}
    source, shards = write_zip(files, tmp_path / "source.zip"), tmp_path / "shards"
    script = [sys.executable, "-c", KILLED, str(source), str(shards)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    how = PackOptions(workers=1, sets_per_shard=10)
    with pytest.raises(AlreadyComplete):
        pack(source, shards, how, finish=True)
    pack(source, tmp_path / "whole", how)
    assert files_below(shards) == files_below(tmp_path / "whole")
    assert not (shards / UNFINISHED / ARGUMENTS).exists()
