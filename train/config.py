from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from pipeline.devices import DEVICES as LOADER_DEVICES
from pipeline.devices import gpu_problem, gpu_usable, torch_device
from pipeline.errors import InputError
from pipeline.loading.augment import Augmentation
from pipeline.loading.loader import Loader
from pipeline.loading.sample_cache import PLACES
from train.compiling import missing_for_compile
from train.distributed import SINGLE, Distributed
from train.losses import DEFAULT, DEPTH_WEIGHT, MASK_WEIGHT, RECIPES
from train.networks import network_name, require_network
from train.optim import SCHEDULES
from train.precision import PRECISIONS, describe_format

Settings = dict[str, int | float | str | None]
OF_OLD: Settings = {  # what runs were begun with before they could choose
    "loss": "bce+ssim",
    "sets": None,
    "minutes": None,
    "schedule": "cosine",
    "clip": 0.0,
    "ema": 0.0,
    "augment": False,
    "peer_protocol": False,
    "precision": "auto",
    "deterministic": False,
}
COMPILE = ("auto", "off", "default", "reduce-overhead")
BUDGETS = ("epochs", "sets", "minutes")
RESIDENT = ("auto", "off", *PLACES)
DEVICES = ("auto", *LOADER_DEVICES)
MAY_CHANGE = (
    "shards",
    "out",
    "device",
    "resident",
    "compile",
    "hw_decoder_load",
    "log_every",
    "checkpoint_every",
    "max_bad_share",
)  # what a resumed run is free to set anew
FIXED = {  # what no run can change, and what it decides
    **dict.fromkeys(("batch_size", "seed", "window", "peer_protocol"), "the order of the sets"),
    **dict.fromkeys(("model", "depth"), "the network's weights"),
}


@dataclass(frozen=True)
class Config:
    """Everything that decides what a training run does."""

    shards: Path
    """Folder of packed shards."""
    out: Path
    """Folder of the run: checkpoints, logs, pictures."""
    epochs: int | None = 10
    """How often every training set is seen; None where `sets` or `minutes` say how long to train."""
    sets: int | None = None
    """How many sets are seen, those seen again counted again."""
    minutes: float | None = None
    """How long to train, the validations between epochs included; how far it gets depends on the machine."""
    batch_size: int = 64
    """Sets a step, over all devices."""
    size: int = 128
    """Height and width in pixels at which sets are trained; a multiple of 16, at least 32."""
    lr: float = 2e-3
    """Highest learning rate, reached after the warm-up."""
    weight_decay: float = 0.01
    """AdamW's decay of convolution weights; norms and biases have none."""
    warmup: float = 0.05
    """Share of the run in which the learning rate rises; of the schedule cosine."""
    schedule: str = "cosine"
    """How the learning rate changes, of `optimizer.SCHEDULES`."""
    clip: float = 1.0
    """Largest 2-norm of the gradient, longer ones are shortened to it; 0: any."""
    ema: float = 0.999
    """Decay of the average of the weights that is validated and used; 0: the weights themselves are."""
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
    peer_protocol: bool = False
    """Whether to train on a random split by set, LEAKING, as published numbers do."""
    precision: str = "auto"
    """Number format of the network's arithmetic, of `precision.PRECISIONS`; auto: see `precision.number_format`."""
    deterministic: bool = False
    """Whether a run on a GPU can be repeated to the bit, as on a CPU it always can; costs speed."""
    compile: str = "auto"
    """Mode of torch.compile; auto: "default" on a GPU where it can compile, off on a CPU; "reduce-overhead" captures
    CUDA graphs."""
    hw_decoder_load: float | None = None
    """Share of the JPEGs that the hardware engine of a GPU decodes, 0 to 1; None: see `decode.hardware_load`, and
    0 if deterministic, since which pictures it decodes depends on the batch, and it may round otherwise than CUDA."""
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
        budgets = [flag(name, value) for name in BUDGETS if (value := getattr(self, name)) is not None]
        if len(budgets) != 1:
            raise InputError(
                f"{' '.join(budgets) or 'no length of the run'}: expected one of --epochs, --sets, --minutes"
            )
        if self.minutes is not None and not 0 < self.minutes < float("inf"):
            raise InputError(f"--minutes {self.minutes}: expected a number above 0, such as 10")
        for name in ("epochs", "sets", "batch_size", "window", "log_every", "checkpoint_every"):
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
        if not 0 <= self.clip < float("inf"):
            raise InputError(f"--clip {self.clip}: expected a length of the gradient such as 1.0, or 0 for any")
        if not 0 <= self.ema < 1:
            raise InputError(f"--ema {self.ema}: expected a decay below 1 such as 0.999, or 0 for none")
        if not 0 <= self.max_bad_share <= 1:
            raise InputError(f"--max-bad-share {self.max_bad_share}: expected a share of the sets from 0 to 1")
        if self.hw_decoder_load is not None and not 0 <= self.hw_decoder_load <= 1:
            raise InputError(f"--hw-decoder-load {self.hw_decoder_load}: expected a share of the JPEGs from 0 to 1")
        if self.deterministic and self.hw_decoder_load:
            raise InputError(
                f"--deterministic --hw-decoder-load {self.hw_decoder_load}: expected 0, since which pictures the "
                "engine decodes depends on the batch"
            )
        if self.seed < 0:
            raise InputError(f"--seed {self.seed}: expected 0 or more")
        for name in ("mask_weight", "depth_weight"):
            if not 0 <= (weight := getattr(self, name)) < float("inf"):
                raise InputError(f"{flag(name, weight)}: expected 0 or more")
        require_network(self.model)
        named = {
            **{"device": DEVICES, "resident": RESIDENT, "loss": RECIPES, "schedule": SCHEDULES},
            **{"precision": PRECISIONS, "compile": COMPILE},
        }
        for name, choices in named.items():
            if (choice := getattr(self, name)) not in choices:
                raise InputError(f"{flag(name, choice)}: expected one of {', '.join(choices)}")

    def compile_mode(self, device: torch.device) -> str | None:
        """The mode of torch.compile on a device, None for none.

        Raises `InputError` where a mode was asked for by name and there is nothing to compile with.
        """
        if self.compile == "off" or (self.compile == "auto" and device.type != "cuda"):
            return None
        missing = missing_for_compile(device)
        if self.compile == "auto":
            return None if missing else "default"
        if missing:
            raise InputError(f"--compile {self.compile}: {missing}; or train with --compile off")
        return self.compile

    @property
    def training_split(self) -> str:
        """Name of the split that is trained on."""
        return "peer-train" if self.peer_protocol else "train"

    @property
    def validation_split(self) -> str:
        """Name of the split that is validated on."""
        return "peer-val" if self.peer_protocol else "val"

    def loader(
        self, device: torch.device, split: str | None = None, *, shuffle: bool = True, ranks: Distributed = SINGLE
    ) -> Loader:
        """A loader of one split of the run's shards, by default of that for training.

        Raises `InputError` as `Loader` does.
        """
        return Loader(
            self.shards,
            split or self.training_split,
            batch_size=self.batch_size,
            size=self.size,
            device="gpu" if device.type == "cuda" else "cpu",
            seed=self.seed,
            rank=ranks.rank,
            world=ranks.world,
            depth=self.depth,
            shuffle=shuffle,
            window=self.window,
            resident=self.resident,
            threads=ranks.cores,
            augmentation=Augmentation() if self.augment else None,
            max_bad_share=self.max_bad_share,
            hw_decoder_load=0.0 if self.deterministic else self.hw_decoder_load,
        )

    def settings(self) -> Settings:
        """What decides the course of the run, by name: plain values, kept in its checkpoints."""
        return {name: value for name, value in asdict(self).items() if name not in MAY_CHANGE}

    def resumed(
        self, saved: Mapping[str, int | float | str | None], given: Collection[str], *, override: bool = False
    ) -> "Config":
        """The configuration of a run begun with the settings `saved`, continued with ours.

        Settings that the user did not give (`given` holds the names that he did) are taken from `saved`.
        Raises `InputError` where one that he gave is another: the run would not be the one that was begun. To
        `override` takes his instead, but for those that are FIXED.
        """
        ours, saved = self.settings(), {**OF_OLD, "model": network_name(saved), **saved}
        changed = [name for name in ours if name in given and name in saved and ours[name] != saved[name]]
        fixed = [name for name in changed if name in FIXED]
        if refused := fixed if override else changed:
            asked, has = (" ".join(flag(name, of[name]) for name in refused) for of in (ours, saved))
            how = "leave out what differs to continue that run"
            if fixed:
                how = f"{FIXED[fixed[0]]} would be another; {how}"
            elif not override:
                how += ", give --override to go on otherwise"
            raise InputError(f"{asked}: the run in {self.out} has {has}; {how}, or start another with another --out")
        saved = {name: value for name, value in saved.items() if name in ours and name not in changed}
        return replace(self, **saved)  # type: ignore[arg-type]


def flag(name: str, value: object) -> str:
    """How a field is set to a value on the command line."""
    words = name.replace("_", "-")
    if value is None:
        return f"no --{words}"
    if isinstance(value, bool):
        return f"--{words}" if value else f"--no-{words}"
    return f"--{words} {value}"


def describe_device(config: Config, device: torch.device, ranks: int) -> str:
    """A line on what is trained on, and how: the device, the number format, torch.compile; where auto chose, why.

    Raises `InputError` as `Config.compile_mode` does.
    """
    on_gpu = device.type == "cuda"
    if on_gpu:
        gpu = torch.cuda.get_device_name(device)
        where = f"training on {ranks} GPUs, the first: {gpu}" if ranks > 1 else f"training on the GPU: {gpu}"
    else:
        where = f"training on {ranks} processes, on the CPU" if ranks > 1 else "training on the CPU"
        if config.device == "auto":
            where = f"{problem}; {where}" if (problem := gpu_problem()) else f"no GPU found: {where}"
    how = [describe_format(config.precision, device)]
    mode = config.compile_mode(device)
    if mode or on_gpu:
        lacking = missing_for_compile(device) if config.compile == "auto" and not mode else ""
        how.append(f"torch.compile {mode or 'off'}{f': {lacking}; steps are slower' if lacking else ''}")
    if config.deterministic:
        how.insert(1, "deterministic")
    return ", ".join([where, *how])


def choose_device(name: str) -> torch.device:
    """The device for gpu, cpu or auto. Raises `InputError` for a GPU that is not there."""
    if name == "auto":
        name = "gpu" if gpu_usable() else "cpu"
    return torch_device(name)
