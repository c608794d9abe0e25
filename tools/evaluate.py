"""fgbg-evaluate: the scores of a trained network on sets of any data."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

import tools.before_torch  # noqa: F401 - first
from pipeline.loading.split import SPLITS
from pipeline.storage import Location
from tools.cli import Command, LocationType, echo, options_of, progress_bar
from tools.outputs import require_writable
from train.config import CHECKPOINTS, DEVICES, Config

if TYPE_CHECKING:
    from pipeline.loading.batch import Batch


@click.command(cls=Command)
@click.argument("run", type=LocationType())
@click.option("--shards", type=LocationType(), required=True, help="Folder or URL of packed shards, of any data.")
@click.option("--split", type=click.Choice([*SPLITS, "all"]), default="test", show_default=True,
              help="Whose backgrounds and foregrounds are the new ones; those of train are the seen.")  # fmt: skip
@click.option("--checkpoint", type=click.Choice(CHECKPOINTS), default="best", show_default=True,
              help="best: of the epoch with the highest mask IoU in validation.")  # fmt: skip
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True,
              help="auto: the GPU if there is one.")  # fmt: skip
@click.option("--tta", is_flag=True,
              help="Average the predictions on the pictures and on their left-right mirror: two passes.")  # fmt: skip
@click.option("--out", type=LocationType(), metavar="DIR|URL",
              help="Write evaluation.json, evaluation.txt and worst.png there.")  # fmt: skip
@click.option("--peer-protocol", is_flag=True,
              help="LEAKING: part the sets at random, 80/10/10, as published numbers do.")  # fmt: skip
@options_of(Config, ("cache", "cache_size"))
@click.option("--sets-per-cell", type=click.IntRange(1), metavar="N",
              help="Score at most N sets of each cell, drawn at random, the same each time; default: all.")  # fmt: skip
def main(
    run: Location,
    shards: Location,
    split: str,
    checkpoint: str,
    device: str,
    tta: bool,
    out: Location | None,
    peer_protocol: bool,
    sets_per_cell: int | None,
    **cache: Any,
) -> None:
    """Score the network that fgbg-train left in RUN, a folder or a URL.

    Sets are scored in four cells, seen and new backgrounds with seen and new foregrounds; the headline is that of both
    new. The mask is compared at 0.5, the depth where both the network and the sets have it, at the size that was
    trained. Beside it stand two baselines: |fg_bg - bg| > t for the mask, the background's mean depth for the depth.
    """
    from pipeline.devices import torch_device
    from pipeline.storage import storage_of
    from train.checkpoint import load_run
    from train.evaluate import evaluate, open_split
    from train.evaluation_table import text
    from train.pictures import png

    if out:
        require_writable(out)
    on = torch_device(device)
    trained = load_run(run, checkpoint, on, shards, tta=tta)
    trained = trained._replace(config=replace(trained.config, **cache))
    for fallback in trained.fallbacks:
        echo(f"the run went back once: {fallback}", err=True)
    data = open_split(trained, split, on, peer=peer_protocol, most=sets_per_cell)
    with progress_bar("scoring", len(data.loader)) as bar:

        def counted(batches: "Iterable[Batch]") -> "Iterator[Batch]":
            for batch in batches:
                yield batch
                bar.update(1)

        evaluation = evaluate(trained, split, data, counted)
    tables = text(evaluation)
    echo(*tables.splitlines())
    if out:
        numbers = json.dumps(evaluation.numbers(), indent=1, allow_nan=False)
        place = storage_of(out)
        for name, content in (("evaluation.txt", tables), ("evaluation.json", numbers)):
            place.put(name, f"{content}\n".encode())
        place.put("worst.png", png(evaluation.picture()))


if __name__ == "__main__":
    main()
