"""What a run came to, read back from its folder; and all of them as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.baselines.plan import Baseline, gmac, parameters
from pipeline.errors import InputError
from pipeline.resume import atomic_file
from train.evaluate import HEADLINE
from train.logging import Line, read_lines
from train.scoring import NETWORK, TRIVIAL, Summary


@dataclass(frozen=True)
class Row:
    """One run: a row of a table."""

    data: str
    network: str
    loss: str
    budget: str
    amount: float
    lr: float
    depth: bool
    parameters: int
    gmac: float
    sets_seen: int
    minutes: float
    """Of training; validations are left out."""
    sets_per_sec: float
    """The same way."""
    stall_share: float
    """Of these minutes, that training waited for data."""
    test_sets: int
    """New backgrounds with new foregrounds."""
    test_backgrounds: int
    threshold: int
    """Of the trivial |fg_bg - bg| > t, in 0..255."""
    scores: dict[str, dict[str, Summary]]
    """By who is scored, "network" or "trivial", and the score's name."""

    def mean(self, score: str, who: str = NETWORK) -> float | None:
        """A score's mean; None where there is none."""
        return self.scores[who].get(score, {}).get("mean")

    def in_short(self) -> str:
        """The scores that say most."""
        labels = {"mask_iou": "mask IoU", "depth_ssim": "depth SSIM"}
        found = {label: self.mean(name) for name, label in labels.items()}
        return ", ".join(f"{label} {mean:.3f}" for label, mean in found.items() if mean is not None) or "no test set"

    @property
    def has_baseline_depth(self) -> bool:
        """Whether the mean depth of the training sets has been scored."""
        return self.mean("depth_ssim", TRIVIAL) is not None


def read_row(baseline: Baseline, size: int, folder: Path) -> Row:
    """The result of a run from its metrics.jsonl and test/evaluation.json; `size` in pixels."""
    evaluation = json.loads((folder / "test" / "evaluation.json").read_text())
    cell = evaluation["cells"][HEADLINE]
    sets, seconds, waited_sec = training_time(read_lines(folder / "metrics.jsonl"))
    return Row(
        **asdict(baseline),
        lr=baseline.lr,
        depth=baseline.depth,
        parameters=parameters(baseline.network, baseline.depth),
        gmac=gmac(baseline.network, baseline.depth, size),
        sets_seen=sets,
        minutes=seconds / 60,
        sets_per_sec=sets / seconds if seconds else 0.0,
        stall_share=waited_sec / seconds if seconds else 0.0,
        test_sets=cell["sets"],
        test_backgrounds=cell["backgrounds"],
        threshold=evaluation["threshold"],
        scores=cell["scores"],
    )


def training_time(lines: Sequence[Line]) -> tuple[int, float, float]:
    """Sets seen, seconds of training and seconds of these that it waited for data, by the lines of metrics.jsonl."""
    sets, seconds, waited_sec = 0, 0.0, 0.0
    for line in lines:
        if line["kind"] == "train":
            more = line["sets_seen"] - sets
            took = more / line["sets_per_sec"] if more else 0.0
            sets, seconds, waited_sec = line["sets_seen"], seconds + took, waited_sec + took * line["stall_share"]
    return sets, seconds, waited_sec


def save_results(path: Path, rows: Sequence[Row], about: Mapping[str, Any]) -> None:
    """Write all runs, and what there is to know `about` them, as one JSON file."""
    with atomic_file(path) as file:
        file.write(json.dumps({**about, "runs": [asdict(row) for row in rows]}, indent=1, allow_nan=False).encode())


def load_results(path: Path) -> list[Row]:
    """The runs in such a file; raises `InputError` where it is none."""
    try:
        return [Row(**row) for row in json.loads(path.read_text())["runs"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: not the results of benchmarks.baselines; run it again, which writes new ones"
        ) from error
