"""Prove that every byte of a cache directory is as its manifests say."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import msgspec

from pipeline.errors import InputError
from pipeline.files import open_file, read_file
from pipeline.format.manifest import BACKGROUNDS, INDEX, MANIFEST, Manifest
from pipeline.loading.caching.folder import DATA_SET, PARTIAL, files_of
from pipeline.loading.caching.locks import locked
from pipeline.regular_files import open_regular
from pipeline.words import plural


class CacheReport(NamedTuple):
    """What checking a cache directory has found."""

    files: int
    bytes: int
    dropped: list[str]
    """Files that were not what their manifest says, below the directory; they are removed."""

    def __str__(self) -> str:
        wrong = f"{plural(len(self.dropped), 'file')} dropped ({', '.join(self.dropped[:5])})" if self.dropped else ""
        return f"{plural(self.files, 'file')} ({self.bytes / 1e9:,.2f} GB) as packed{wrong and ', ' + wrong}"


def check_cache(directory: Path) -> CacheReport:
    """Read all files of a cache directory, and remove those whose hash is not that of their manifest.

    It may be in use meanwhile. What has no manifest to compare it with is removed, too. Raises `InputError` where there
    is none.
    """
    if not directory.is_dir():
        raise InputError(f"there is no cache in {directory}: give the folder that was given as --cache")
    good, size, dropped = 0, 0, []
    for folder in sorted(directory.iterdir()):
        if not DATA_SET.fullmatch(folder.name):
            continue
        with locked(directory):
            names = sorted(name for name in files_of(folder) if not PARTIAL.fullmatch(name))
        expected = _hashes(folder)
        for name in names:
            path = folder / name
            try:
                with open_file(path, open_regular) as file:
                    is_good = hashlib.file_digest(file, "sha256").hexdigest() == expected.get(name)
                    file_bytes = file.tell()
            except FileNotFoundError:
                continue  # evicted meanwhile
            except OSError:
                is_good = False
            if is_good:
                good, size = good + 1, size + file_bytes
                continue
            with locked(directory):
                path.unlink(missing_ok=True)
            dropped.append(f"{folder.name}/{name}")
    return CacheReport(good, size, dropped)


def _hashes(folder: Path) -> dict[str, str]:
    """What the files of a data set must hash to, by its manifest, which the folder is named by; nothing without it."""
    try:
        text = read_file(folder / MANIFEST, open_regular)
        if hashlib.sha256(text).hexdigest() == folder.name:
            manifest = msgspec.json.decode(text, type=Manifest)
            shards = {shard.name: shard.sha256 for shard in manifest.shards}
            extras = {INDEX: manifest.index_sha256, BACKGROUNDS: manifest.backgrounds_sha256}
            return {**shards, **extras, MANIFEST: folder.name}
    except (OSError, ValueError, RecursionError):
        pass
    return {}
