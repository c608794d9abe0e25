"""PyTorch Lightning drives the loader: python examples/lightning_loop.py --shards shards/."""

from pathlib import Path

import click
import lightning
import torch
from torch import Tensor

from pipeline import Batch, Loader
from train.losses import Criterion
from train.model import UNet


class MaskAndDepth(lightning.LightningModule):
    """The project's U-Net and losses, trained by Lightning."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.network, self.criterion = UNet(width, head_padding="replicate"), Criterion()

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """The loss of a batch, uint8 [N, 1, H, W], on the device."""
        losses = self.criterion(self.network(batch.bg, batch.fg_bg), batch.mask, batch.depth, batch.depth_valid)
        self.log_dict({"mask_loss": losses.mask, "depth_loss": losses.depth}, prog_bar=True, batch_size=len(batch))
        return losses.total

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


@click.command()
@click.option("--shards", type=click.Path(path_type=Path), default=Path("shards"), help="Folder of packed shards.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/lightning"))
@click.option("--epochs", default=3)
@click.option("--batch-size", default=64)
@click.option("--size", default=128, help="Height and width, pixels.")
@click.option("--width", default=16, help="Channels of the U-Net at half size.")
@click.option("--accelerator", default="auto", help="Lightning's: auto, gpu or cpu.")
def main(shards: Path, out: Path, epochs: int, batch_size: int, size: int, width: int, accelerator: str) -> None:
    """Train on the training split."""
    device = "cpu" if accelerator == "cpu" else "auto"
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator=accelerator, devices=1, default_root_dir=out, log_every_n_steps=1
    )
    with Loader(shards, split="train", batch_size=batch_size, size=size, device=device, resident="auto") as loader:
        trainer.fit(MaskAndDepth(width), train_dataloaders=loader)
    losses = ", ".join(f"{name} {float(value):.3f}" for name, value in trainer.callback_metrics.items())
    print(f"trained {trainer.current_epoch} epochs, {trainer.global_step} steps: {losses}")


if __name__ == "__main__":
    main()
