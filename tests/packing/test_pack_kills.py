"""A packing that is killed at any moment, and given again, ends in the bytes of one that was not."""

import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from pipeline.errors import AlreadyComplete
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack
from tests.miniatures import write_zip
from tests.samples import files_below, jpeg, overlay, set_paths, smooth_picture, soft_disc

KILLS = 10

# Runs in a fresh interpreter, so that nothing else is in the process that is killed. Python tells an audit hook of
# each file it opens, renames or removes, and of each folder it makes, before it does. A sync, and a set appended to a
# tar, are no such events; they are made some.
KILLED = """
import os, pathlib, signal, sys
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack
from pipeline.format.tar import TarWriter

source, shards, moment = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
events = 0

def happens(event="sync", arguments=(sys.argv[2],)):
    global events
    if event in ("sync", "open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"):
        if any(shards in os.fsdecode(path) for path in arguments if isinstance(path, (str, bytes, os.PathLike))):
            events += 1
            if events == moment:
                os.kill(os.getpid(), signal.SIGKILL)

def fork_and_pack():
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        sync, add = os.fsync, TarWriter.add
        TarWriter.add = lambda *arguments: (happens("sync"), add(*arguments))[1]
        os.fsync = lambda file: (happens(), sync(file))
        sys.addaudithook(happens)
        pack(source, pathlib.Path(shards), PackOptions(workers=1, sets_per_shard=20))
        print(events, flush=True)
        os._exit(0)
    except BaseException as error:
        print(type(error), error, file=sys.stderr, flush=True)
        os._exit(1)

for moment in map(int, sys.argv[3:]):
    shards = f"{sys.argv[2]}/{moment}"
    code = fork_and_pack()
    if code != (-signal.SIGKILL if moment else 0):
        sys.exit(f"killed at {moment} it ended with {code}")
"""


def killed_at(source: Path, targets: Path, *moments: int) -> str:
    """Pack into targets/MOMENT for each moment, killed there; 0 is never. Returns what was printed."""
    targets.mkdir(exist_ok=True)
    command = [sys.executable, "-c", KILLED, str(source), str(targets), *map(str, moments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_killed_at_random_moments_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    names = [set_paths(bg, fg, bg * 25 + fg) for bg in range(4) for fg in range(25)]
    parts = jpeg(overlay(0, 2)), jpeg(soft_disc(2002)), jpeg(smooth_picture(3, channels=1))
    files = {path: content for paths in names for path, content in zip(paths, parts, strict=True)}
    files |= {f"bg/{bg}.jpg": jpeg(smooth_picture(0)) for bg in range(4)}
    del files[names[7][1]]
    files[names[9][0]] = b""
    source = write_zip(files, tmp_path / "source.zip")
    moments = int(killed_at(source, tmp_path / "targets", 0))
    undisturbed = files_below(tmp_path / "targets" / "0")
    assert undisturbed["problems.csv"].count(b"\n") == 1 + 2 + 3
    assert moments > 2 * KILLS, "there are moments to choose from"
    chosen = random.Random(0).sample(range(1, moments + 1), KILLS)
    killed_at(source, tmp_path / "targets", *chosen)
    finished = 0
    for moment in chosen:
        shards = tmp_path / "targets" / str(moment)
        for path, data in files_below(shards).items():
            assert path.startswith(".") or data == undisturbed[path], "whole, or not there"
        if (shards / "manifest.json").exists() and not (shards / ".unfinished").exists():
            finished += 1  # killed while it was tidying up
        else:
            with suppress(AlreadyComplete):  # killed before it had tidied up
                pack(source, shards, PackOptions(workers=1, sets_per_shard=20))
        assert {path: data for path, data in files_below(shards).items() if not path.startswith(".")} == undisturbed
    assert finished < KILLS / 2
