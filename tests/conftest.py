import gc
import os
import signal
from collections.abc import Generator
from pathlib import Path

# Before torch is loaded, and for what tests start: networks of 4 channels keep no second thread busy, which then spins.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from hypothesis import settings

from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack
from pipeline.storage import Folder, Url
from tests.samples import S15, without_depth, write_sets

# No deadline: these machines are noisy. Derandomised: a failure in CI is a failure here.
settings.register_profile("fgbg", deadline=None, derandomize=True)
settings.load_profile("fgbg")

# What a shell starts in the background ignores Ctrl-C, and so does all that it starts; tests interrupt what they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Under nohup a closed terminal is nothing to heed, either.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

pytest_plugins = ("tests.services.fixtures",)

# 10 x 10 ids: the split puts 64 sets in train, 1 in val, 1 in test.
IDS = 10


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    known = [line for line in config.getini("filterwarnings") if line.startswith("ignore:")]
    for item in items:
        if item.get_closest_marker("gpu"):
            # A new deprecation in a GPU machine's own versions of torch and DALI is no failure of ours: it is shown.
            # Before the test's own marks, which then still count.
            item.add_marker(pytest.mark.filterwarnings("default", *known), append=False)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Hide the machine's GPUs from tests that are not marked `gpu`: of them, "auto" is the CPU everywhere."""
    with pytest.MonkeyPatch.context() as patched:
        if not item.get_closest_marker("gpu"):
            patched.setattr(torch.cuda, "is_available", lambda: False)
            patched.setenv("CUDA_VISIBLE_DEVICES", "")  # of what they start
        return (yield)


def pytest_collection_finish() -> None:
    """What has been imported stays: no collection of garbage has to look at its million objects again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 loose image sets; read only."""
    return write_sets(tmp_path_factory.mktemp("source"), IDS, IDS)


@pytest.fixture(scope="session")
def packed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same sets as shards of 16; read only."""
    shards = tmp_path_factory.mktemp("packed") / "shards"
    pack(source, shards, PackOptions(sets_per_shard=16, workers=1))
    return shards


@pytest.fixture(scope="session")
def bare(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same sets as shards of 16, without depth; read only."""
    return without_depth(source, tmp_path_factory.mktemp("bare") / "shards")


@pytest.fixture(scope="session")
def planes(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same sets again, as planes of 16 x 16 pixels; read only."""
    shards = tmp_path_factory.mktemp("planes") / "shards"
    pack(source, shards, PackOptions(sets_per_shard=16, workers=1, codec="planes", size=16))
    return shards


@pytest.fixture(scope="session")
def trained(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run on `packed`, with its report; read only."""
    from tests.tools.test_train_command import trained_on  # here: most tests do without torch

    return trained_on(packed, tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture(scope="session")
def mask_alone(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run without depth, on `bare`; read only."""
    from tests.tools.test_train_command import trained_on

    return trained_on(bare, tmp_path_factory.mktemp("mask_alone") / "run", "--no-depth")


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that s3://bucket stands for, in tests of what is around object storage; with caches of its own."""
    folder = tmp_path / "bucket"
    folder.mkdir()
    stand_for_object_storage(monkeypatch, folder, tmp_path / "cache")
    return folder


def stand_for_object_storage(monkeypatch: pytest.MonkeyPatch, folder: Path, cache: Path) -> None:
    """Let s3://bucket be a folder, and `cache` that of the user."""

    def storage(url: Url) -> Folder:
        return Folder(folder / url.text.removeprefix("s3://bucket").strip("/"))

    monkeypatch.setattr("pipeline.object_storage.ObjectStorage", storage)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture(scope="session")
def s15() -> Path:
    """The original's own 4 sets."""
    if not S15.is_dir():
        pytest.skip("the original's pictures (shared/data/s15) are not on this machine")
    return S15
