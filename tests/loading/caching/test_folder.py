"""A cache directory that several processes change."""

from pathlib import Path

import pytest

from pipeline.loading.caching.folder import CachedFile, CacheFolder
from pipeline.loading.caching.locks import unlock_and_close

SHA256, OTHER_SHA256 = "a" * 64, "b" * 64


def cache_folder(directory: Path, sha256: str = SHA256) -> CacheFolder:
    return CacheFolder(directory, sha256, 1000, lambda: b"{}")


def listed(folder: CacheFolder) -> dict[str, object]:
    with folder.listed() as listing:
        return vars(listing)


@pytest.mark.parametrize("sha256", [SHA256, OTHER_SHA256])
def test_a_process_lists_what_a_new_one_would_after_others_have_changed_it(tmp_path: Path, sha256: str) -> None:
    """Files that it knows from before are not looked at again: others come, go, and come again."""
    watcher, worker = cache_folder(tmp_path, sha256), cache_folder(tmp_path)
    for name, victims in [("a.tar", ()), ("b.tar", ()), ("c.tar", ("a.tar",)), ("a.tar", ("b.tar", "c.tar"))]:
        before = listed(watcher)
        with worker.listed() as listing:
            file = CachedFile(name, 498 if name != "c.tar" else 300, "")
            descriptor = worker.begin(listing, file, victims)
        assert listed(watcher) == listed(cache_folder(tmp_path, sha256))
        worker.finish(file, descriptor)
        unlock_and_close(descriptor)
        assert listed(watcher) == listed(cache_folder(tmp_path, sha256)) != before
    worker.remove("a.tar")
    assert listed(watcher) == listed(cache_folder(tmp_path, sha256))
