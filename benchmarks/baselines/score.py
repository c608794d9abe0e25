"""python -m benchmarks.baselines.score: of what fgbg-evaluate tells, the headline alone.

The other three cells would take most of the time, and `net` a second for each set.
"""

import json
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded: see tools/train.py

import click
import numpy as np
import torch

from pipeline.devices import torch_device
from pipeline.resume import atomic_file
from tools.cli import Command
from train.checkpoint import load_run
from train.config import DEVICES
from train.evaluate import CELLS, HEADLINE, Evaluation, draw, evaluate, open_split

SPLIT = "test"


@click.command(cls=Command)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--shards", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="For evaluation.json.")
@click.option("--sets", type=click.IntRange(1), required=True, help="Sets scored, at most.")
@click.option("--device", type=click.Choice(DEVICES), default="auto")
def main(run: Path, shards: Path, out: Path, sets: int, device: str) -> None:
    """Score the last checkpoint of RUN on sets of new backgrounds with new foregrounds."""
    evaluation = score(run, shards, sets, torch_device(device))
    out.mkdir(parents=True, exist_ok=True)
    with atomic_file(out / "evaluation.json") as file:
        file.write(json.dumps(evaluation.numbers(), indent=1, allow_nan=False).encode())


def score(folder: Path, shards: Path, sets: int, device: torch.device) -> Evaluation:
    """The evaluation of a run's last checkpoint on at most `sets` sets of the cell new/new of the split test.

    They are drawn as `fgbg-evaluate --sets-per-cell` draws them. The last checkpoint is what a budget has bought; the
    best may be of any step. Raises `InputError` where there is no such run or set.
    """
    run = load_run(folder, "last", device, shards)
    opened = open_split(run, SPLIT, device)
    headline = opened.loader.sibling(SPLIT, shuffle=False)  # both ids are of the split: new with new
    picked = np.sort(draw(headline.rows(), sets))
    only = opened.protocol._replace(cells={HEADLINE: CELLS[HEADLINE]})
    opened = opened._replace(protocol=only, loader=headline.sibling(SPLIT, shuffle=False, picked=picked))
    return evaluate(run, SPLIT, opened)


if __name__ == "__main__":
    main()
