import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

# Before torch is loaded: its threads shall sleep, not spin, while they wait for one another, beside DALI's threads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import click

from pipeline.batch import Batch
from pipeline.files import atomic_file
from pipeline.split import SPLITS
from tools.cli import Command, progress_bar
from train.config import DEVICES, choose_device
from train.evaluation import evaluate, open_split
from train.pictures import save_picture
from train.run import open_run


@click.command(cls=Command)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--shards", type=click.Path(path_type=Path), required=True, help="Folder of packed shards, of any data.")
@click.option("--split", type=click.Choice([*SPLITS, "all"]), default="test", show_default=True,
              help="Sets to score; backgrounds and foregrounds of test and val are never trained on.")  # fmt: skip
@click.option("--checkpoint", type=click.Choice(["best", "last"]), default="best", show_default=True,
              help="best: of the epoch with the highest mask IoU in validation.")  # fmt: skip
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True,
              help="auto: the GPU if there is one.")  # fmt: skip
@click.option("--json", "numbers", type=click.Path(path_type=Path), metavar="FILE", help="Write all numbers there.")
@click.option("--picture", type=click.Path(path_type=Path), metavar="FILE",
              help="Write a PNG of the 8 worst sets and 4 around the median.")  # fmt: skip
def main(
    run: Path, shards: Path, split: str, checkpoint: str, device: str, numbers: Path | None, picture: Path | None
) -> None:
    """Score the network that fgbg-train left in the folder RUN.

    The mask is compared at 0.5, the depth where both the network and the sets have it, at the size that was trained;
    beside it stands the trivial baseline |fg_bg - bg| > t. "worst 5 %" is the score that 95 % of the sets surpass.
    """
    on = choose_device(device)
    trained = open_run(run, checkpoint, shards, on)
    loader = open_split(trained, split, on)
    with progress_bar("scoring", len(loader)) as bar:

        def counted(batches: Iterable[Batch]) -> Iterator[Batch]:
            for batch in batches:
                yield batch
                bar.update(1)

        evaluation = evaluate(trained, split, loader, counted)
    click.echo(evaluation.table())
    if numbers:
        numbers.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(numbers) as file:
            file.write((json.dumps(evaluation.numbers(), indent=1) + "\n").encode())
    if picture:
        save_picture(evaluation.picture(), picture)
