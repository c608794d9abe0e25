"""The settings of a training run: what they mean, their limits and choices. Nothing heavy is imported here."""

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, NamedTuple

from pipeline.errors import InputError
from pipeline.limits import MOST_BATCH, MOST_COUNT, MOST_EDGE, MOST_SEED, URL_WINDOW, byte_count
from pipeline.storage import StrLocation, Url, location_of
from train.option import Option, flag, kinds_of, setting, shortened

StrPath = str | os.PathLike[str]
Settings = dict[str, int | float | str | None]
"""Plain values by name, as a checkpoint keeps them."""

DEVICES = ("auto", "gpu", "cpu")
RESIDENT = ("auto", "off", "device", "host")
COMPILE = ("auto", "off", "default", "reduce-overhead")
CHOSEN_BY_DEVICE = ("native", "auto")
PRECISIONS = (*CHOSEN_BY_DEVICE, "float32", "bf16", "fp16")
SCHEDULES = ("cosine", "one-cycle")


class Rates(NamedTuple):
    """What an optimiser is given where the user says nothing else."""

    lr: float
    weight_decay: float


OPTIMIZERS = {"muon": Rates(0.03, 6.0), "adamw": Rates(2e-3, 0.01)}
"""The optimisers that `optim.build_optimizer` knows."""
NETWORKS = ("unet-xs", "unet-s", "unet-m", "net", "convgen")
"""The networks that `networks.build_network` knows by name, beside unet-W and unet-WxB."""
LOSSES = {"bce": 2.0, "bce+ssim": 2.0, "combined": 2.0, "sharp": 6.0}
"""The recipes of `losses.RECIPES`, and the mask's weight in each; that of the original is 2."""
BY_DEVICE: dict[str, dict[str, Any]] = {
    "batch_size": {"cpu": 8, "cuda": 64},  # small batches learn more from a set, large ones keep a GPU busy
    "model": {"cpu": "unet-24x2", "cuda": "unet-s"},  # with 0.948 and 0.949 after ten minutes on two cores
}
"""Defaults by type of device."""
CHECKPOINTS = ("best", "last")
"""Checkpoints of a run that can be evaluated, exported and used to predict."""
PAIRS_AT_ONCE, MOST_PAIRS_AT_ONCE = 16, 64
"""Pairs of pictures that `predict.predict` takes at a time: the default, and the most."""
BUDGETS = ("epochs", "sets", "minutes")
"""Settings of which exactly one says how long to train."""

SETTINGS_OF_OLD_RUNS: Settings = {  # values that checkpoints written before a setting existed were trained with
    "loss": "bce+ssim",
    "mask_weight": 2.0,
    "sets": None,
    "minutes": None,
    "schedule": "cosine",
    "optimizer": "adamw",
    "clip": 0.0,
    "ema": 0.0,
    "augment": False,
    "peer_protocol": False,
    "precision": "auto",
    "deterministic": False,
}
MOST_EPOCHS, MOST_WIDTH, MOST_BLOCKS = 1_000_000, 512, 9
MOST_MINUTES = 366.0 * 24 * 60
MOST_WEIGHT, MOST_NORM = 1000.0, 1e9
SIZES = f"a multiple of 16 from 32 to {MOST_EDGE}, such as 128"
MAY_CHANGE = (
    "shards",
    "out",
    "device",
    "resident",
    "cache",
    "cache_size",
    "compile",
    "hw_decoder_load",
    "log_every",
    "checkpoint_every",
    "max_bad_share",
)  # what a resumed run is free to set anew
FIXED = {  # what no run can change, and what it decides
    **dict.fromkeys(("batch_size", "seed", "window", "peer_protocol"), "the order of the sets"),
    **dict.fromkeys(("model", "depth"), "the network's weights"),
    "optimizer": "the optimiser's state",
}


def by_device(name: str) -> str:
    """What the help shows for a default of BY_DEVICE."""
    return f"{BY_DEVICE[name]['cpu']} on a CPU, {BY_DEVICE[name]['cuda']} on GPUs"


@dataclass(frozen=True)
class Config:
    """Everything that decides what a training run does. Raises `InputError` for a value outside of its limits."""

    shards: StrLocation = field(metadata={"option": Option("Folder or URL of packed shards.")})
    """Folder or URL of packed shards."""
    out: StrLocation = field(metadata={"option": Option("Folder or URL for this run; new or empty.")})
    """Folder or URL of the run: checkpoints, logs, pictures."""
    epochs: int | None = setting(10, "How often every training set is seen.", minimum=1, maximum=MOST_EPOCHS)
    """How often every training set is seen; None where `sets` or `minutes` say how long to train."""
    sets: int | None = setting(None, "In place of --epochs: how many sets are seen.", minimum=1, maximum=MOST_COUNT)
    """How many sets are seen, those seen again counted again."""
    minutes: float | None = setting(
        None,
        "In place of --epochs: how long to train, with validation in between.",
        above=0,
        maximum=MOST_MINUTES,
        expected=f"a number above 0 and at most {MOST_MINUTES:.0f}, such as 10",
    )
    """How long to train, the validations between epochs included; how far it gets depends on the machine."""
    batch_size: int = setting(
        None,
        "Sets a step.",
        minimum=1,
        maximum=MOST_BATCH,
        shown_default=by_device("batch_size"),
    )
    """Sets a step, over all devices; None until `on_device` is told where."""
    size: int = setting(
        128,
        "Height and width in pixels; a multiple of 16.",
        minimum=32,
        maximum=MOST_EDGE,
        expected=SIZES,
    )
    """Height and width in pixels at which sets are trained; a multiple of 16, at least 32."""
    optimizer: str = setting("muon", "muon learns more from every set than adamw.", choices=tuple(OPTIMIZERS))
    """What takes the steps: `muon.Muon`, or AdamW for all weights."""
    lr: float = setting(
        None,
        "Highest learning rate.",
        above=0,
        maximum=MOST_WEIGHT,
        expected=f"a number above 0 and at most {MOST_WEIGHT:.0f}, such as 0.002",
        shown_default=" or ".join(f"{of.lr:g} of {name}" for name, of in OPTIMIZERS.items()),
    )
    """Highest learning rate, reached after the warm-up; None stands for the optimiser's own."""
    weight_decay: float = setting(
        None,
        "Decay of convolution weights; of adamw, each step takes lr times this off; of muon, see docs/training.md.",
        minimum=0,
        maximum=MOST_WEIGHT,
        expected=f"a number from 0 to {MOST_WEIGHT:.0f}, such as 6 of muon or 0.01 of adamw",
        shown_default=" or ".join(f"{of.weight_decay:g} of {name}" for name, of in OPTIMIZERS.items()),
    )
    """Decay of convolution weights; norms and biases have none. Of AdamW, each step takes lr times this off; of Muon
    see `optim.set_rates`. None stands for the optimiser's own."""
    warmup: float = setting(
        0.05,
        "Share of the run in which the rate rises.",
        minimum=0,
        below=1,
        expected="a share of all steps from 0 to below 1",
    )
    """Share of the run in which the learning rate rises; of the schedule cosine."""
    schedule: str = setting("cosine", "Schedule of the learning rate.", choices=SCHEDULES)
    """How the learning rate changes: see `optim.learning_rate`."""
    clip: float = setting(
        1.0,
        "Largest norm of the gradient; 0: any.",
        minimum=0,
        maximum=MOST_NORM,
        expected=f"a length of the gradient such as 1.0, at most {MOST_NORM:.0e}, or 0 for any",
    )
    """Largest 2-norm of the gradient, longer ones are shortened to it; 0: any."""
    ema: float = setting(
        0.999,
        "Decay of the average of the weights that is validated and used; 0: no average.",
        minimum=0,
        below=1,
        expected="a decay below 1 such as 0.999, or 0 for none",
    )
    """Decay of the average of the weights that is validated and used; 0: the weights themselves are."""
    depth: bool = setting(True, "Learn the depth too, or the mask alone.")
    """Whether the network learns the depth too, or the mask alone."""
    model: str = setting(
        None,
        f"The network: {', '.join(NETWORKS)}, or unet-W of W channels, or unet-WxB with B blocks at the coarse levels.",
        shown_default=by_device("model"),
    )
    """The network: unet-xs, unet-s, unet-m, the original's net and convgen; or unet-W with W channels at half size, or
    unet-WxB with B blocks in place of one at each of its two coarsest levels; None until `on_device` is told where."""
    loss: str = setting("sharp", "bce and bce+ssim are those of the original.", choices=tuple(LOSSES))
    """The loss that is minimised: a recipe of `losses.RECIPES`."""
    mask_weight: float = setting(
        None,
        "Weight of the mask's loss in the sum.",
        minimum=0,
        maximum=MOST_WEIGHT,
        shown_default=f"{LOSSES['sharp']:g} of sharp, else 2",
    )
    """Weight of the mask's loss in the sum; None stands for the loss's own."""
    depth_weight: float = setting(1.0, "Weight of the depth's loss in the sum.", minimum=0, maximum=MOST_WEIGHT)
    """Weight of the depth's loss in the sum."""
    device: str = setting("auto", "auto: the GPU if there is one.", choices=DEVICES)
    """gpu, cpu, or auto: the GPU where there is one; or a device by its name in PyTorch, such as "cuda:1"."""
    resident: str = setting(
        "auto", "Where decoded sets stay for later epochs; auto: where there is room.", choices=RESIDENT
    )
    """Where decoded sets stay for later epochs: device, host, auto (where there is room), or off."""
    mirror: bool = setting(True, "Mirror half of the sets, left to right.")
    """Whether half of the training sets, drawn anew in each epoch, are mirrored left to right."""
    augment: bool = setting(False, "Crop, shift, and change brightness, contrast and noise, too.")
    """Whether training sets are cropped, shifted and changed in brightness, contrast and noise, too."""
    peer_protocol: bool = setting(False, "LEAKING: train on a random split by set, as published numbers do.")
    """Whether to train on a random split by set, LEAKING, as published numbers do."""
    precision: str = setting(
        "native",
        "native: bf16 where the hardware has it; else fp16 on a GPU, float32 on a CPU. auto: float32 on every CPU.",
        choices=PRECISIONS,
    )
    """Number format of the network's arithmetic; native and auto: see `runtime.number_format`."""
    deterministic: bool = setting(
        False, "The same bits in every run on a GPU, too, where they cost speed; on a CPU they are."
    )
    """Whether a run on a GPU can be repeated to the bit, as on a CPU it always can; costs speed."""
    compile: str = setting(
        "auto",
        "Mode of torch.compile; auto: default on a GPU with a C compiler beside it, else off.",
        choices=COMPILE,
    )
    """Mode of torch.compile; auto: "default" on a GPU where it can compile, off on a CPU; "reduce-overhead" captures
    CUDA graphs."""
    hw_decoder_load: float | None = setting(
        None,
        "Share of the JPEGs that a GPU's hardware engine decodes, 0 to 1.",
        minimum=0,
        maximum=1,
        expected="a share of the JPEGs from 0 to 1",
        shown_default="the loader's",
    )
    """Share of the JPEGs that the hardware engine of a GPU decodes, 0 to 1; None: see `decode.hardware_load`, and
    0 if deterministic, since which pictures it decodes depends on the batch, and it may round otherwise than CUDA."""
    cache: str | None = setting(
        None, "Folder on a local disk where shards behind a URL are kept.", shown_default="the user's cache folder"
    )
    """Folder on a local disk where shards behind a URL are kept; None: fgbg in the user's cache folder."""
    cache_size: str = setting("100GB", "What all in that folder may take; 0: keep nothing.")
    """What all that is in that folder may take, such as "100GB"; "0": nothing is kept."""
    window: int | None = setting(
        None,
        "Shards read and mixed at a time, by all ranks together; 0: all.",
        minimum=0,
        maximum=MOST_COUNT,
        shown_default=f"all; {URL_WINDOW} behind a URL",
    )
    """Shards that are read at a time, by all ranks together, and whose sets are mixed, where random reads are dear or
    each host downloads what it reads; 0: all of them; None: all, but URL_WINDOW of shards behind a URL."""
    seed: int = setting(0, "For first weights, order of the sets, augmentation.", minimum=0, maximum=MOST_SEED)
    """Decides the network's first weights, the order of the sets and their augmentation."""
    log_every: int = setting(20, "Steps between two lines of metrics.", minimum=1, maximum=MOST_COUNT)
    """Steps between two lines of metrics; each waits for the device once."""
    checkpoint_every: int = setting(1000, "Steps between checkpoints.", minimum=1, maximum=MOST_COUNT)
    """Steps between two checkpoints within an epoch."""
    max_bad_share: float = setting(
        0.01,
        "Share of damaged training sets that is left out before the run stops.",
        minimum=0,
        maximum=1,
        expected="a share of the sets from 0 to 1",
    )
    """Share of the training sets that may be left out as damaged before the run stops."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", str(self.device))  # PyTorch has devices of its own
        for entry in fields(self):
            if getattr(self, entry.name) is None:
                object.__setattr__(self, entry.name, self._default(entry.name))
            value = getattr(self, entry.name)
            if value is None and entry.name in BY_DEVICE:
                continue
            if entry.name != "device" or not re.fullmatch(r"cuda(:\d{1,4})?", self.device):
                entry.metadata["option"].check(entry.name, value, kinds_of(entry))
        budgets = [flag(name, value) for name in BUDGETS if (value := getattr(self, name)) is not None]
        if len(budgets) != 1:
            raise InputError(
                f"{' '.join(budgets) or 'no length of the run'}: expected one of --epochs, --sets, --minutes"
            )
        byte_count(self.cache_size)
        if self.window is None and _is_url(self.shards):
            object.__setattr__(self, "window", URL_WINDOW)
        if self.size % 16:
            raise InputError(f"--size {self.size}: expected {SIZES}")
        if self.deterministic and self.hw_decoder_load:
            raise InputError(
                f"--deterministic --hw-decoder-load {self.hw_decoder_load}: expected 0, since which pictures the "
                "engine decodes depends on the batch"
            )
        if self.model is not None:
            require_network(self.model)

    def _default(self, name: str) -> float | None:
        """The default of a setting by those that are fields before it, and have been checked."""
        if name in Rates._fields:
            return float(getattr(OPTIMIZERS[self.optimizer], name))
        return LOSSES[self.loss] if name == "mask_weight" else None

    @property
    def training_split(self) -> str:
        """Name of the split that is trained on."""
        return "peer-train" if self.peer_protocol else "train"

    @property
    def validation_split(self) -> str:
        """Name of the split that is validated on."""
        return "peer-val" if self.peer_protocol else "val"

    def on_device(self, kind: str) -> "Config":
        """The same for a type of device, cpu or cuda: with its own defaults."""
        return replace(self, **{name: of[kind] for name, of in BY_DEVICE.items() if getattr(self, name) is None})

    def settings(self) -> Settings:
        """The settings that decide the result of the run, as its checkpoints keep them."""
        return {name: value for name, value in asdict(self).items() if name not in MAY_CHANGE}

    def resumed(
        self, saved: Mapping[str, int | float | str | None], given: Collection[str], *, override: bool = False
    ) -> "Config":
        """The configuration with which a run goes on whose checkpoint has the settings `saved`.

        `given` names the settings that the user set explicitly; all others are taken from `saved`. Raises `InputError`
        where an explicit setting differs from the saved one: the run would not be the same. With `override` the
        explicit ones count, except for those that are FIXED.
        """
        ours, saved = self.settings(), whole_settings(saved)
        changed = self._changed(saved, given)
        fixed = [name for name in changed if name in FIXED]
        if refused := fixed if override else changed:
            asked, has = self._told_apart(saved, refused)
            how = "leave out what differs to continue that run"
            if fixed:
                how = f"{FIXED[fixed[0]]} would be another; {how}"
            elif not override:
                how += ", give --override to go on otherwise"
            raise InputError(f"{asked}: the run in {self.out} has {has}; {how}, or start another with another --out")
        saved = {name: value for name, value in saved.items() if name in ours and name not in changed}
        if not saved.get("window", 1):  # all shards, wherever they lie now
            saved["window"] = 0 if _is_url(self.shards) else None
        return replace(self, **saved)  # type: ignore[arg-type]

    def require_same(self, saved: Mapping[str, int | float | str | None]) -> None:
        """Raise `InputError` where settings that decide the result differ from those of a complete run."""
        saved = whole_settings(saved)
        if changed := self._changed(saved, self.settings()):
            asked, has = self._told_apart(saved, changed)
            raise InputError(
                f"{asked}: the complete run in {self.out} has {has}; give --resume --override to go on otherwise, or "
                "start another with another --out"
            )

    def _changed(self, saved: Mapping[str, object], names: Collection[str]) -> list[str]:
        """Which of the settings `names` differ from those of a checkpoint."""
        ours = self.settings()
        return [name for name in ours if name in names and name in saved and not _alike(name, ours[name], saved[name])]

    def _told_apart(self, saved: Mapping[str, object], names: Collection[str]) -> tuple[str, str]:
        """The flags that would set these settings as they are here, and as they were saved."""
        ours = self.settings()
        asked, has = (" ".join(flag(name, of[name]) for name in names) for of in (ours, saved))
        return asked, has


def _is_url(shards: StrLocation) -> bool:
    return isinstance(location_of(shards), Url)


def _alike(name: str, one: object, other: object) -> bool:
    """Whether two values of a setting mean the same; of the window, 0 and None are all shards."""
    return one == other or (name == "window" and not one and not other)


def whole_settings(saved: Mapping[str, int | float | str | None]) -> Settings:
    """The settings in a checkpoint, with those that did not exist yet when it was written."""
    mirror = saved.get("augment", False)  # which was a part of it
    return {**SETTINGS_OF_OLD_RUNS, "model": network_name(saved), "mirror": mirror, **saved}


def require_network(name: str) -> None:
    """Raise `InputError` unless `name` is that of a network."""
    if name not in NETWORKS:
        unet_shape(name)


def unet_shape(name: str) -> tuple[int, int]:
    """Width and blocks of unet-W and unet-WxB. Raises `InputError` for another name."""
    found = re.fullmatch(f"unet-([1-9][0-9]{{0,4}})(?:x([1-{MOST_BLOCKS}]))?", str(name))
    if found is None or int(found[1]) > MOST_WIDTH:
        raise InputError(
            f"network {shortened(name)!r}: expected one of {', '.join(NETWORKS)}, or unet- and a width of at most "
            f"{MOST_WIDTH}, as unet-32, or unet-32x2 of up to {MOST_BLOCKS} blocks a coarse level"
        )
    return int(found[1]), int(found[2] or 1)


def network_name(settings: Mapping[str, object]) -> str:
    """The name of a run's network by the settings in its checkpoint; old ones have no name but the U-Net's width."""
    return str(settings.get("model", f"unet-{settings.get('width')}"))
