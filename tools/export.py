"""fgbg-export: the trained network for other runtimes."""

from pathlib import Path

import click

from pipeline.storage import Location
from tools.cli import Command, LocalPathType, LocationType, echo
from tools.outputs import require_file
from train.config import CHECKPOINTS


@click.command(cls=Command)
@click.argument("run", type=LocationType())
@click.option("--onnx", type=LocalPathType(), metavar="FILE",
              help="One file with the pre-processing inside; needs the extra `export`.")  # fmt: skip
@click.option("--safetensors", type=LocalPathType(), metavar="FILE", help="The weights alone.")
@click.option("--checkpoint", type=click.Choice(CHECKPOINTS), default="best", show_default=True,
              help="best: of the epoch with the highest mask IoU in validation.")  # fmt: skip
def main(run: Location, onnx: Path | None, safetensors: Path | None, checkpoint: str) -> None:
    """Write the network that fgbg-train left in RUN, a folder or a URL as ONNX, as safetensors, or both.

    The ONNX file takes `background` and `overlay`, uint8 [batch, size, size, channels] at the size that was trained,
    with channels 3 (RGB) or 1 (gray), and gives `mask` and, where it was learnt, `depth`, float32 [batch, 1, size,
    size] in 0..1. It is written once onnxruntime has computed what PyTorch does. Both files hold the run's settings,
    the hash of its shards' manifest and versions as metadata.
    """
    import torch

    from train.checkpoint import load_run
    from train.export import TOLERANCE, export_onnx, export_safetensors

    if not onnx and not safetensors:
        raise click.UsageError("nothing to write: give --onnx FILE, --safetensors FILE or both")
    for path in filter(None, (onnx, safetensors)):
        require_file(path)
    trained = load_run(run, checkpoint, torch.device("cpu"))
    size, what = trained.config.size, f"{trained.checkpoint} (step {trained.step:,})"
    if onnx:
        difference = export_onnx(trained, onnx)
        echo(
            f"{onnx}: {what}, {size} x {size} pixels; onnxruntime differs from PyTorch by at most {difference:.1e} "
            f"(allowed {TOLERANCE:.0e})"
        )
    if safetensors:
        export_safetensors(trained, safetensors)
        echo(f"{safetensors}: the weights of {what}")


if __name__ == "__main__":
    main()
