"""Checkpoints that are whole, but hold what no run has written: one line each, and nothing of them is used."""

import copy
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import InputError
from tests.test_before import BEFORE
from tests.train.test_checkpoint import a_checkpoint
from train.checkpoint import BEST, LAST, PREVIOUS, load, load_last, save, write_archive
from train.sealed import COMMENT

WEIGHT = "mask_head.draw.bias"
Content = dict[str, Any]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / LAST
    save(path, a_checkpoint(width=1))
    return path


@pytest.fixture(scope="module")
def content(path: Path) -> Content:
    found: Content = torch.load(path, weights_only=True)
    return found | {"state": json.loads(found["state"])}


def refused(path: Path) -> str:
    with pytest.raises(InputError) as error:
        load(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < 500 + len(str(path))
    return message


def test_any_flipped_bit_is_found(path: Path, tmp_path: Path) -> None:
    whole, draw = path.read_bytes(), random.Random(0)
    places = [*range(40), *range(len(whole) - COMMENT - 40, len(whole)), *draw.sample(range(len(whole)), 200)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        (tmp_path / LAST).write_bytes(damaged)
        assert "cut short or damaged" in refused(tmp_path / LAST), place


def test_a_flipped_bit_in_the_tensors_of_an_older_checkpoint_is_found(tmp_path: Path) -> None:
    whole = (BEFORE / "run" / LAST).read_bytes()
    for moments in torch.load(BEFORE / "run" / LAST, weights_only=True)["network"].values():
        damaged = bytearray(whole)
        damaged[whole.index(bytes(moments.untyped_storage()))] ^= 0x20
        (tmp_path / LAST).write_bytes(damaged)
        assert "cut short or damaged" in refused(tmp_path / LAST)


def test_a_checkpoint_that_lost_its_checksum_is_found(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    (tmp_path / LAST).write_bytes(whole[: -COMMENT - 2] + b"\0\0")
    assert "cut short or damaged" in refused(tmp_path / LAST)


def with_state(**changes: Any) -> Callable[[Content], Any]:
    return lambda content: content | {"state": content["state"] | changes}


def with_settings(**changes: Any) -> Callable[[Content], Any]:
    return lambda content: with_state(settings=content["state"]["settings"] | changes)(content)


def with_weight(value: Any, of: str = "network") -> Callable[[Content], Any]:
    return lambda content: content | {of: content["network"] | {WEIGHT: value}}


def with_moments(**changes: Any) -> Callable[[Content], Any]:
    def changed(content: Content) -> Any:
        state = {0: content["optimizer"]["state"][0] | changes}
        return content | {"optimizer": content["optimizer"] | {"state": state}}

    return changed


WRONG: list[tuple[Callable[[Content], Any], str]] = [
    (with_state(format=99), "checkpoint format 99, but this version reads 1 and 2"),
    (with_state(format=[[]]), "checkpoint format"),
    (with_state(step=-1), "step"),
    (with_state(step=math.nan), "step"),
    (with_state(step="5"), "step"),
    (with_state(step=True), "step"),
    (with_state(step=10**30), "step"),
    (with_state(step=None), "step"),
    (with_state(settings=[]), "settings"),
    (with_state(settings={"model": {"a": {}}}), "settings"),
    (with_state(settings={"model": None}), "network 'None': expected one of unet-xs"),
    (with_state(manifest=7), "manifest"),
    (with_state(manifest="0" * 9999), "manifest"),
    (with_state(loader=None), "loader"),
    (with_state(loader={"epoch": [1]}), "loader"),
    (with_state(sets_seen=-1), "sets_seen"),
    (with_state(sets_seen=1.5), "sets_seen"),
    (with_state(best_iou=math.nan), "best_iou"),
    (with_state(best_iou="high"), "best_iou"),
    (with_state(scores=[1]), "scores"),
    (with_state(scores={"sets": "x"}), "scores"),
    (with_state(elapsed_sec=math.inf), "elapsed_sec"),
    (with_state(scaler={"scale": 0.0}), "scaler"),
    (with_settings(epochs=math.nan), "--epochs nan: expected a whole number"),
    (with_settings(epochs=10**9), "--epochs 1000000000: expected at most 1,000,000"),
    (with_settings(epochs=None), "expected one of --epochs, --sets, --minutes"),
    (with_settings(lr=math.inf), "--lr inf"),
    (with_settings(lr="x"), "--lr x: expected a number"),
    (with_settings(seed=2**70), "--seed 1180591620717411303424: expected at most"),
    (with_settings(batch_size=2**31), "--batch-size 2147483648: expected at most 65,536"),
    (with_settings(size=10**5), "--size 100000: expected a multiple of 16 from 32 to 4096"),
    (with_settings(model="unet-100000"), "network 'unet-100000'"),
    (with_settings(model="\x1b[2J"), r"network '\\x1b[2J'"),
    (with_settings(model="unet-2"), "but here it is float32 [4, 2"),
    (with_settings(depth=1), "--depth 1: expected yes or no"),
    (with_settings(loss=None), "no --loss: expected a text"),
    (with_weight(torch.zeros(3)), f"{WEIGHT} is float32 [3], but here it is float32 [4]"),
    (with_weight(torch.zeros(4, dtype=torch.float64)), "is float64 [4]"),
    (with_weight(torch.zeros(4).to_sparse()), "is no tensor but Tensor"),
    (with_weight(torch.full((4,), math.nan)), f"{WEIGHT} holds values that are no numbers"),
    (with_weight(torch.full((4,), math.inf), "ema"), f"{WEIGHT} holds values that are no numbers"),
    (with_weight(3.0), "is no tensor but float"),
    (with_weight(torch.zeros(2), "ema"), "is float32 [2]"),
    (lambda content: content | {"network": [1]}, "no weights by name"),
    (lambda content: content | {"network": {3: torch.zeros(1)}}, "no weights by name"),
    (lambda content: content | {"network": {}}, "is missing, but here it is"),
    (lambda content: content | {"ema": "x"}, "no weights by name"),
    (lambda content: content | {"optimizer": None}, "no state of the optimiser"),
    (lambda content: content | {"optimizer": {"state": {999: {}}}}, "no state of the optimiser"),
    (lambda content: content | {"optimizer": {"state": {"0": {}}}}, "no state of the optimiser"),
    (with_moments(exp_avg=torch.zeros(1)), "'exp_avg': 'float32 [1]'"),
    (with_moments(exp_avg=None), "'exp_avg': 'no tensor but NoneType'"),
    (with_moments(step=torch.tensor(math.nan)), "holds values that are no numbers"),
    (with_moments(more=torch.zeros(1)), "'more'"),
]


@pytest.mark.parametrize(("changed", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_wrong_content_is_one_line(
    content: Content, tmp_path: Path, changed: Callable[[Content], Any], message: str
) -> None:
    found = changed(copy.copy(content))
    write_archive(tmp_path / LAST, found | {"state": json.dumps(found["state"])})
    assert message in refused(tmp_path / LAST)


@pytest.mark.parametrize("state", ["{", "[]", "5", "null", '"x"', "[" * 100_000, '{"step": 1' + "0" * 9999 + "}"])
def test_a_state_that_is_none_is_one_line(content: Content, tmp_path: Path, state: str) -> None:
    write_archive(tmp_path / LAST, content | {"state": state})
    assert "not a whole checkpoint" in refused(tmp_path / LAST)


def test_what_takes_no_memory_is_not_given_any(content: Content, tmp_path: Path) -> None:
    """A file of some bytes may say that a tensor has 10^15 values, all of them the same one."""
    write_archive(tmp_path / LAST, content | {"network": {WEIGHT: torch.zeros(1).expand(10**15)}} | {"state": "{}"})
    refused(tmp_path / LAST)
    with (tmp_path / LAST).open("wb") as file:
        file.truncate(1 << 40)
    assert "not a whole checkpoint (1,099,511,627,776 bytes)" in refused(tmp_path / LAST)


def test_of_the_last_three_the_first_that_is_whole_is_gone_on_from(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    for name in (LAST, PREVIOUS, BEST):
        (tmp_path / name).write_bytes(whole)
    assert load_last(tmp_path).fallback == ""
    for damaged, taken in ((LAST, PREVIOUS), (PREVIOUS, BEST)):
        (tmp_path / damaged).write_bytes(whole[:-1] + b"x")
        found = load_last(tmp_path)
        assert found.path == tmp_path / taken
        assert found.fallback == f"{tmp_path / LAST}: damaged; going on from the one before, {taken}, of step 1"
    (tmp_path / BEST).unlink()
    with pytest.raises(InputError, match=r"last\.pt: not a whole"):
        load_last(tmp_path)
    (tmp_path / LAST).unlink()
    (tmp_path / PREVIOUS).write_bytes(whole)
    assert load_last(tmp_path).fallback.startswith(
        f"{tmp_path / LAST}: missing; going on from the one before, previous.pt"
    )
