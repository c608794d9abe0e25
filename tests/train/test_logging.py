"""metrics.jsonl: what is good in a damaged one is kept, and the rest is told in one line."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from pipeline.errors import InputError
from train.logging import METRICS, TENSORBOARD, Log, read_lines, read_metrics

TRAIN = {"kind": "train", "step": 3, "epoch": 1, "loss": 0.5, "sets_seen": 48, "sets_per_sec": 9.0, "stall_share": 0.1}


def text(line: dict[str, Any]) -> bytes:
    return json.dumps(line).encode()


DAMAGES = {
    "not UTF-8": b"\xff\xfe" + text(TRAIN),
    "not UTF-8 within": text(TRAIN).replace(b"loss", b"lo\xffs"),
    "cut": text(TRAIN)[:20],
    "a list": b"[]",
    "nested": b"[" * 100_000,
    "empty": b"",
    "zeros": bytes(64),
    "no kind": b"{}",
    "no step": text({name: value for name, value in TRAIN.items() if name != "step"}),
    "step NaN": text({**TRAIN, "step": math.nan}),
    "step text": text({**TRAIN, "step": "3"}),
    "step yes": text({**TRAIN, "step": True}),
    "step huge": text({**TRAIN, "step": 10**30}),
    "step below 0": text({**TRAIN, "step": -3}),
    "epoch 0": text({**TRAIN, "epoch": 0}),
    "loss NaN": text({**TRAIN, "loss": math.nan}),
    "loss infinite": text(TRAIN).replace(b"0.5", b"1e999"),
    "loss text": text({**TRAIN, "loss": "low"}),
    "duplicate": text({**TRAIN, "step": 2}),
    "going backwards": text({**TRAIN, "step": 1}),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_damaged_line_is_left_out_and_told_in_one_line(tmp_path: Path, damage: str) -> None:
    good = [{**TRAIN, "step": 2}, {**TRAIN, "step": 4}, {**TRAIN, "step": 4, "kind": "val"}]
    lines = [text(good[0]), DAMAGES[damage], text(good[1]), text(good[2])]
    (tmp_path / METRICS).write_bytes(b"\n".join(lines) + b"\n" + text(TRAIN)[:30])  # the last was cut by a kill
    found = read_metrics(tmp_path / METRICS)
    assert found.lines == good
    assert found.damage.startswith(f"{tmp_path / METRICS}: left out 1 damaged line, the first line 2: ")
    assert "\n" not in found.damage
    assert len(found.damage) < 300 + len(str(tmp_path))
    log = Log(tmp_path, 4)
    log.close()
    assert log.damage == found.damage
    assert read_metrics(tmp_path / METRICS) == (good, "")


def test_lines_after_the_checkpoint_are_forgotten_whatever_their_order(tmp_path: Path) -> None:
    lines = [{**TRAIN, "step": step} for step in (1, 9000, 2, 3)]
    (tmp_path / METRICS).write_bytes(b"".join(text(line) + b"\n" for line in lines))
    assert read_metrics(tmp_path / METRICS, 2) == ([lines[0], lines[2]], "")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / METRICS).mkdir()
    with pytest.raises(InputError, match=r"metrics\.jsonl is no file: remove it"):
        read_metrics(tmp_path / METRICS)
    assert read_lines(tmp_path / "none.jsonl") == []


def test_no_value_that_is_no_number_is_written(tmp_path: Path) -> None:
    log = Log(tmp_path, 0)
    log.write("val", 1, 1, {"mask_iou": 0.5, "depth_ssim": math.nan})
    log.picture("predictions", 1, Image.new("RGB", (8, 8)))
    log.result({"lr": 0.1, "model": "unet-s", "sets": None}, {"mask_iou": 0.5})
    log.close()
    log.close()
    assert read_lines(tmp_path / METRICS) == [{"kind": "val", "step": 1, "epoch": 1, "mask_iou": 0.5}]
    board = EventAccumulator(str(tmp_path / TENSORBOARD)).Reload()
    assert set(board.Tags()["scalars"]) == {"mask_iou/val", "final/mask_iou"}
    assert [event.step for event in board.Images("predictions")] == [1]
    assert "_hparams_/session_start_info" in board.summary_metadata
