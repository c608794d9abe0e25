"""fgbg-predict: mask and depth of new pictures."""

from pathlib import Path

import click

import tools.before_torch  # noqa: F401 - first
from pipeline.errors import InputError
from pipeline.packing.shapes import FITS
from pipeline.storage import Location
from pipeline.words import plural
from tools.cli import Command, LocalPathType, LocationType, echo, progress_bar
from tools.outputs import require_writable
from train.config import CHECKPOINTS, DEVICES, MOST_PAIRS_AT_ONCE, PAIRS_AT_ONCE


@click.command(cls=Command)
@click.argument("run", type=LocationType())
@click.option("--background", type=LocalPathType(), required=True, metavar="PICTURE|FOLDER|TEMPLATE",
              help="Without the object. One picture goes with all overlays.")  # fmt: skip
@click.option("--overlay", type=LocalPathType(), required=True, metavar="PICTURE|FOLDER|TEMPLATE",
              help="With it: the same view, of the same size or ratio of sides.")  # fmt: skip
@click.option("--out", type=LocalPathType(), required=True, help="Folder to fill: a new or an empty one.")
@click.option("--checkpoint", type=click.Choice(CHECKPOINTS), default="best", show_default=True,
              help="best: of the epoch with the highest mask IoU in validation.")  # fmt: skip
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True,
              help="auto: the GPU if there is one.")  # fmt: skip
@click.option("--tta", is_flag=True,
              help="Average the predictions on the pictures and on their left-right mirror: two passes.")  # fmt: skip
@click.option("--fit", type=click.Choice(FITS), default=FITS[0], show_default=True,
              help="Backgrounds of another shape than the overlay: refuse, crop the middle, or stretch.")  # fmt: skip
@click.option("--follow-links", is_flag=True, help="Read what links in a folder lead to outside of it, and folders.")
@click.option("--batch-size", type=click.IntRange(1, MOST_PAIRS_AT_ONCE), default=PAIRS_AT_ONCE, show_default=True,
              help="Pairs that the network sees at a time.")  # fmt: skip
def main(
    run: Location,
    background: Path,
    overlay: Path,
    out: Path,
    checkpoint: str,
    device: str,
    tta: bool,
    fit: str,
    follow_links: bool,
    batch_size: int,
) -> None:
    """Predict mask and depth of pictures with the network that fgbg-train left in RUN, a folder or a URL.

    Folders are joined by file names, whatever the extensions; templates, such as streets/bg_{bg}.jpg with
    pictures/fg_{fg}_bg_{bg}.jpg, by the numbers in the fields of the background's. Pictures are JPEG, PNG,
    WebP, TIFF and more of up to 100 million pixels, colour or gray, 8 or 16 bits; alpha and EXIF orientation are passed
    over, as in training. For each overlay:

    \b
    NAME.mask.png           the mask, gray: 255 is certainly foreground, 128 and above is more likely than not
    NAME.depth.png          depth, gray, 16 bits, near is bright, if the run has learnt it
    NAME.depth-colour.png   the same in the colours of magma, near is bright
    NAME.side-by-side.png   background, overlay, mask and depth in a row

    Mask and depth have the size of the overlay. A stopped command is continued by the same again.
    """
    from pipeline.devices import torch_device
    from train.checkpoint import load_run
    from train.predict import find_pairs, predict

    require_writable(out)
    for given in (background, overlay):
        if given.is_dir() and out.resolve().is_relative_to(given.resolve()):
            raise InputError(f"{out} is in {given}, where what is written would be taken for input: give another --out")
    pairs = find_pairs(background, overlay, follow_links=follow_links, tell=lambda line: echo(line, err=True))
    on = torch_device(device)
    trained = load_run(run, checkpoint, on, tta=tta)
    with progress_bar("predicting", len(pairs)) as bar:
        predict(trained, pairs, out, on, batch_size, fit, bar.update)
    step = f"step {trained.step:,}{'; TTA' if tta else ''}"
    echo(f"predicted {plural(len(pairs), 'pair')} with {trained.checkpoint} ({step}) into {out}")


if __name__ == "__main__":
    main()
