"""A network, a loss and a loop of one's own on the loader: python examples/own_loop.py --shards shards/."""

from pathlib import Path

import click
import torch
from torch import nn
from torch.nn import functional as F

from pipeline import Augmentation, Loader


@click.command()
@click.option("--shards", type=click.Path(path_type=Path), default=Path("shards"), help="Folder of packed shards.")
@click.option("--epochs", default=3)
@click.option("--batch-size", default=64)
@click.option("--size", default=128, help="Height and width, pixels.")
@click.option("--device", default="auto")
def main(shards: Path, epochs: int, batch_size: int, size: int, device: str) -> None:
    """Train a small network on mask and depth, and print both losses after each epoch."""
    loader = Loader(
        shards, batch_size=batch_size, size=size, device=device, resident="auto", augmentation=Augmentation()
    )
    network = nn.Sequential(
        nn.Conv2d(2, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 2, 1)
    ).to(loader.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    with loader:  # its threads end here
        for epoch in range(epochs):
            sums = torch.zeros(2, device=loader.device)
            for batch in loader:  # a whole epoch, uint8 [N, 1, H, W], on the device already
                planes = batch.bg, batch.fg_bg, batch.mask, batch.depth
                bg, fg_bg, mask, depth = (plane.float() / 255 for plane in planes)
                output = network(torch.cat([bg, fg_bg], dim=1))  # [N, 2, H, W]
                mask_loss = F.binary_cross_entropy_with_logits(output[:, :1], mask)
                error = F.l1_loss(output[:, 1:].sigmoid(), depth, reduction="none")
                if batch.depth_valid is None:
                    depth_loss = error.mean()
                else:  # depth with holes: the mean over what was measured
                    depth_loss = (error * batch.depth_valid).sum() / batch.depth_valid.sum().clamp(min=1)
                optimizer.zero_grad()
                (2 * mask_loss + depth_loss).backward()
                optimizer.step()
                sums += torch.stack([mask_loss, depth_loss]).detach() / len(loader)  # nothing waits for the device
            print("epoch {}: mask_loss {:.3f} depth_loss {:.3f}".format(epoch + 1, *sums.tolist()))


if __name__ == "__main__":
    main()
