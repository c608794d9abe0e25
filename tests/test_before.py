"""Files that the version of before (commit 77a29aa) made are read, checked and gone on from.

tests/data/before holds 30 image sets of tests.samples as JPEG shards and as planes of 32 x 32 pixels, a checkpoint
after step 3 of 6 of a training on the planes, and in expected.json what that version loaded and how it went on.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.loading.loader import Loader
from pipeline.verify.check import CheckOptions, check
from tests.ranks import in_ranks
from train.config import Config
from train.trainer import Trainer

BEFORE = Path(__file__).parent / "data" / "before"
EXPECTED = json.loads((BEFORE / "expected.json").read_text())
PARTS = ("bg", "fg_bg", "mask", "depth")


def batches(kind: str) -> Loader:
    return Loader(BEFORE / kind, "all", batch_size=8, size=32, threads=1)


@pytest.mark.parametrize("kind", ["jpeg", "planes"])
def test_shards_are_as_they_were_packed_and_come_in_the_same_order(kind: str) -> None:
    assert check(BEFORE / kind, CheckOptions(decode=True, workers=1)).damage == []
    loader = batches(kind)
    assert (loader.manifest.sha256, loader.sets) == (EXPECTED[kind]["manifest"], EXPECTED[kind]["sets"])
    assert [batch.index.tolist() for batch in loader] == EXPECTED[kind]["rows"]


def test_pictures_are_the_same_to_the_bit_and_those_of_jpeg_nearly() -> None:
    digest, planes, jpeg = hashlib.sha256(), batches("planes"), batches("jpeg")
    for batch in planes:
        for part in PARTS:
            digest.update(getattr(batch, part).numpy().tobytes())
    assert digest.hexdigest() == EXPECTED["planes"]["sha256"]
    places = {jpeg.key(row): row for row in range(jpeg.sets)}
    for batch in planes:
        decoded = jpeg.pick([places[planes.key(row)] for row in batch.index.tolist()])
        for part in PARTS:  # JPEG is decoded by this machine, which may round otherwise
            assert (getattr(batch, part).int() - getattr(decoded, part).int()).abs().max() <= 3


def gone_on(out: Path) -> list[dict[str, Any]]:
    """The lines of the run that goes on from its checkpoint."""
    config = Config(BEFORE / "planes", out, device="cpu", log_every=1)
    trainer = Trainer(config, resume=True, say=lambda line: None)
    try:
        trainer.fit(lambda status: None)
    finally:
        trainer.close()
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_run_goes_on_from_its_checkpoint_as_it_would_have_before(tmp_path: Path) -> None:
    shutil.copytree(BEFORE / "run", tmp_path / "run")
    [lines] = in_ranks(1, gone_on, tmp_path / "run")
    losses = {line["step"]: line for line in lines if line["kind"] == "train"}
    assert sorted(losses) == list(range(1, EXPECTED["run"]["steps"] + 1))
    for step, expected in EXPECTED["run"]["losses"].items():
        found = {name: losses[int(step)][name] for name in expected}
        assert found == pytest.approx(expected, rel=1e-4), step
