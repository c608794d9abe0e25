"""The sets of a shard directory in the format of another loader, written once and kept in a cache folder."""

import io
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.errors import InputError
from pipeline.format.manifest import Manifest
from pipeline.format.sample import PARTS
from pipeline.loading.shard_reader import Damaged, ShardReader
from pipeline.resume import UNFINISHED, resumable
from tools.peers.pillow import GrayPlanes, Planes


def sample(store: ShardReader, row: int) -> dict[str, Any]:
    """What other formats hold of a set: its key, the id of its background (bg), and the bytes of each of PARTS."""
    parts = {part: data.tobytes() for part, data in zip(PARTS, store.read(row), strict=True)}
    return {"key": store.key(row), "bg": int(store.index["bg"][row]), **parts}


def decoded(found: dict[str, Any], gray: GrayPlanes) -> Planes:
    """Decode what another loader gives back of a `sample`."""
    return found["key"], gray(found["bg"], [Image.open(io.BytesIO(found[part])) for part in PARTS])


def in_format(package: str, shards: Path, cache: Path, write: Callable[[Path, Path, Path], None]) -> Path:
    """The folder with the sets of `shards` as `package` stores them, written if it is not there.

    `write(shards, folder, scratch)` makes the first folder of two that do not exist; the second is removed. The sets
    are told by the hash of their manifest, so that the same sets are written once, wherever they lie. Raises
    `InputError` for sets that are damaged, and while another process writes them.
    """
    home = cache.expanduser() / f"{package}-{version(package)}-{Manifest.load(shards).sha256[:16]}"
    folder = home / "sets"
    if not folder.exists() or (home / UNFINISHED).exists():
        with resumable(home, {"command": f"fgbg-bench for {package}"}) as notes:
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
            scratch = notes / ".scratch"
            shutil.rmtree(scratch, ignore_errors=True)
            _require_whole(shards)
            write(shards, folder, scratch)
    return folder


def _require_whole(shards: Path) -> None:
    # Before others read them in processes of their own, which have other ways of saying that they cannot.
    store = ShardReader.open(shards)
    try:
        for row in range(len(store.index)):
            store.read(row)
    except Damaged as error:
        raise InputError(f"{error}: loaders are compared on whole sets, see fgbg-check --shards {shards}") from error
