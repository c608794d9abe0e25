from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from pipeline.augment import Augmentation
from pipeline.decode import DEVICES as LOADER_DEVICES
from pipeline.decode import torch_device
from pipeline.errors import InputError
from pipeline.loader import Loader
from pipeline.resident import PLACES
from train.losses import DEFAULT, DEPTH_WEIGHT, MASK_WEIGHT, RECIPES
from train.networks import network_name, require_network

Settings = dict[str, int | float | str | None]
OF_OLD: Settings = {"loss": "bce+ssim"}  # what runs were begun with before they could choose
RESIDENT = ("auto", "off", *PLACES)
DEVICES = ("auto", *LOADER_DEVICES)
MAY_CHANGE = (
    "shards",
    "out",
    "device",
    "resident",
    "log_every",
    "checkpoint_every",
    "max_bad_share",
)  # what a resumed run is free to set anew


@dataclass(frozen=True)
class Config:
    """Everything that decides what a training run does."""

    shards: Path
    """Folder of packed shards."""
    out: Path
    """Folder of the run: checkpoints, logs, pictures."""
    epochs: int = 10
    """How often every training set is seen."""
    batch_size: int = 64
    """Sets a step, over all devices."""
    size: int = 128
    """Height and width in pixels at which sets are trained; a multiple of 16, at least 32."""
    lr: float = 2e-3
    """Highest learning rate, reached after the warm-up."""
    weight_decay: float = 0.01
    """AdamW's decay of convolution weights; norms and biases have none."""
    warmup: float = 0.05
    """Share of all steps in which the learning rate rises from 0."""
    depth: bool = True
    """Whether the network learns the depth too, or the mask alone."""
    model: str = "unet-s"
    """The network: unet-xs, unet-s, unet-m, the original's net and convgen, or unet-W with W channels at half size."""
    loss: str = DEFAULT
    """What is minimised: a recipe of `losses.RECIPES`."""
    mask_weight: float = MASK_WEIGHT
    """Weight of the mask's loss in the sum."""
    depth_weight: float = DEPTH_WEIGHT
    """Weight of the depth's loss in the sum."""
    device: str = "auto"
    """gpu, cpu, or auto: the GPU where there is one."""
    resident: str = "auto"
    """Where decoded sets stay for later epochs: device, host, auto (where there is room), or off."""
    augment: bool = False
    """Whether training sets are mirrored, cropped, shifted and changed in brightness, contrast and noise."""
    window: int | None = None
    """Shards that are shuffled among each other, for storage where random reads are dear; None: all of them."""
    seed: int = 0
    """Decides the network's first weights, the order of the sets and their augmentation."""
    log_every: int = 20
    """Steps between two lines of metrics; each waits for the device once."""
    checkpoint_every: int = 1000
    """Steps between two checkpoints within an epoch."""
    max_bad_share: float = 0.01
    """Share of the training sets that may be left out as damaged before the run stops."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "window", "log_every", "checkpoint_every"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{flag(name, value)}: expected 1 or more")
        if self.size < 32 or self.size % 16:
            raise InputError(f"--size {self.size}: expected a multiple of 16 of at least 32, such as 128")
        if not 0 < self.lr < float("inf"):
            raise InputError(f"--lr {self.lr}: expected a number above 0, such as 0.002")
        if not 0 <= self.weight_decay < float("inf"):
            raise InputError(f"--weight-decay {self.weight_decay}: expected 0 or more, such as 0.01")
        if not 0 <= self.warmup < 1:
            raise InputError(f"--warmup {self.warmup}: expected a share of all steps from 0 to below 1")
        if not 0 <= self.max_bad_share <= 1:
            raise InputError(f"--max-bad-share {self.max_bad_share}: expected a share of the sets from 0 to 1")
        if self.seed < 0:
            raise InputError(f"--seed {self.seed}: expected 0 or more")
        for name in ("mask_weight", "depth_weight"):
            if not 0 <= (weight := getattr(self, name)) < float("inf"):
                raise InputError(f"{flag(name, weight)}: expected 0 or more")
        require_network(self.model)
        for name, choices in (("device", DEVICES), ("resident", RESIDENT), ("loss", RECIPES)):
            if (choice := getattr(self, name)) not in choices:
                raise InputError(f"{flag(name, choice)}: expected one of {', '.join(choices)}")

    def loader(self, device: torch.device, split: str = "train", *, shuffle: bool = True) -> Loader:
        """A loader of one split of the run's shards; raises `InputError` as `Loader` does."""
        return Loader(
            self.shards,
            split,
            self.batch_size,
            self.size,
            "gpu" if device.type == "cuda" else "cpu",
            self.seed,
            depth=self.depth,
            shuffle=shuffle,
            window=self.window,
            resident=self.resident,
            augmentation=Augmentation() if self.augment else None,
            max_bad_share=self.max_bad_share,
        )

    def settings(self) -> Settings:
        """What decides the course of the run, by name: plain values, kept in its checkpoints."""
        return {name: value for name, value in asdict(self).items() if name not in MAY_CHANGE}

    def resumed(self, saved: Mapping[str, int | float | str | None], given: Collection[str]) -> "Config":
        """The configuration of a run begun with the settings `saved`, continued with ours.

        Settings that the user did not give (`given` holds the names that he did) are taken from `saved`.
        Raises `InputError` where one that he gave is another: the run would not be the one that was begun.
        """
        ours, saved = self.settings(), {**OF_OLD, "model": network_name(saved), **saved}
        for name, value in saved.items():
            if name in given and name in ours and ours[name] != value:
                raise InputError(
                    f"{flag(name, ours[name])}: the run in {self.out} has {flag(name, value)}; "
                    f"leave it out to continue that run, or start another with another --out"
                )
        return replace(self, **{name: value for name, value in saved.items() if name in ours})  # type: ignore[arg-type]


def flag(name: str, value: object) -> str:
    """How a field is set to a value on the command line."""
    words = name.replace("_", "-")
    if value is None:
        return f"no --{words}"
    if isinstance(value, bool):
        return f"--{words}" if value else f"--no-{words}"
    return f"--{words} {value}"


def choose_device(name: str) -> torch.device:
    """The device for gpu, cpu or auto. Raises `InputError` for a GPU that is not there."""
    if name == "auto":
        name = "gpu" if torch.cuda.is_available() else "cpu"
    return torch_device(name)
