import dataclasses
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from pipeline import devices
from pipeline.errors import InputError
from pipeline.limits import URL_WINDOW
from pipeline.loading.augment import OFF, Augmentation
from pipeline.loading.sample_cache import PLACES
from pipeline.packing import encode_planes
from train.config import (
    BY_DEVICE,
    DEVICES,
    LOSSES,
    MOST_PAIRS_AT_ONCE,
    NETWORKS,
    OPTIMIZERS,
    RESIDENT,
    SCHEDULES,
    Config,
    Settings,
    require_network,
)
from train.losses import RECIPES, Criterion
from train.networks import ORIGINALS, UNETS
from train.optim import learning_rate
from train.option import kinds_of
from train.runtime import augmentation_of

FIELDS = {entry.name: entry for entry in dataclasses.fields(Config)}


def test_the_choices_are_those_that_the_heavy_modules_know() -> None:
    assert tuple(RECIPES) == tuple(LOSSES)
    assert (*UNETS, *ORIGINALS) == NETWORKS
    assert ("auto", *devices.DEVICES) == DEVICES
    assert ("auto", "off", *PLACES) == RESIDENT
    assert encode_planes.BATCH == MOST_PAIRS_AT_ONCE
    rates = {schedule: learning_rate(0.1, 1.0, 0.05, schedule) for schedule in SCHEDULES}
    assert len(set(rates.values())) == len(SCHEDULES)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("epochs", 0, "--epochs 0: expected 1 or more"),
        ("batch_size", 0, "--batch-size 0: expected 1 or more"),
        ("size", 100, "--size 100: expected a multiple of 16 from 32 to 4096, such as 128"),
        ("lr", 0.0, "--lr 0.0: expected a number above 0 and at most 1000, such as 0.002"),
        ("lr", math.inf, "--lr inf: expected a number above 0 and at most 1000"),
        ("weight_decay", math.nan, "--weight-decay nan: expected a number from 0 to 1000, such as 6 of muon"),
        ("warmup", 1.0, "--warmup 1.0: expected a share of all steps from 0 to below 1"),
        ("ema", 1.0, "--ema 1.0: expected a decay below 1 such as 0.999, or 0 for none"),
        ("hw_decoder_load", 1.5, "--hw-decoder-load 1.5: expected a share of the JPEGs from 0 to 1"),
        ("window", -1, "--window -1: expected 0 or more"),
        ("epochs", math.nan, "--epochs nan: expected a whole number"),
        ("epochs", 2**31, "--epochs 2147483648: expected at most 1,000,000"),
        ("seed", 2**70, "--seed 1180591620717411303424: expected at most 9,223,372,036,854,775,807"),
        ("seed", True, "--seed: expected a whole number"),
        ("sets", [1], "--sets [1]: expected a whole number"),
        ("size", 100_000, "--size 100000: expected a multiple of 16 from 32 to 4096"),
        ("lr", "1", "--lr 1: expected a number"),
        ("lr", 2**2000, "--lr 1148130695274254524232833201177681984022317702088695200..."[:40]),
        ("depth", 1, "--depth 1: expected yes or no"),
        ("model", 4, "--model 4: expected a text"),
        ("loss", "\x1b[2Jb" + 99 * "x", "--loss \\x1b[2Jbxxx"),
        ("seed", -1, "--seed -1: expected 0 or more"),
        ("depth_weight", -0.5, "--depth-weight -0.5: expected 0 or more"),
        ("schedule", "linear", "--schedule linear: expected one of cosine, one-cycle"),
        ("model", "unet-100000", "network 'unet-100000': expected one of unet-xs, unet-s, unet-m, net, convgen, or"),
        ("model", "unet-0", "network 'unet-0': expected one of unet-xs, unet-s, unet-m, net, convgen, or unet- and"),
    ],
)
def test_a_value_out_of_its_limits_is_one_line(name: str, value: Any, expected: str) -> None:
    with pytest.raises(InputError) as told:
        Config("shards", "out", **{name: value})
    assert str(told.value).startswith(expected)


def test_every_limit_lets_through_what_it_says() -> None:
    """A value just inside and one just outside of each limit, of every setting that has one."""
    tried = 0
    for name, entry in FIELDS.items():
        option = entry.metadata["option"]
        step = 1 if int in (entry.type, *get_args(entry.type)) else 1e-6
        for limit, inside, outside in (
            (option.minimum, 0, -step),
            (option.maximum, 0, step),
            (option.above, step, 0),
            (option.below, -step, 0),
        ):
            if limit is not None:
                option.check(name, limit + inside, kinds_of(entry))
                with pytest.raises(InputError, match=f"^--{name.replace('_', '-')} "):
                    option.check(name, limit + outside, kinds_of(entry))
                tried += 1
    assert tried > 15


def test_every_setting_has_a_help_and_a_default_within_its_limits() -> None:
    for name, entry in FIELDS.items():
        assert entry.metadata["option"].help.endswith(".")
        if entry.default is not dataclasses.MISSING:
            default = getattr(Config("shards", "out").on_device("cpu"), name)
            entry.metadata["option"].check(name, default, kinds_of(entry))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_each_optimizer_has_rates_of_its_own_where_none_are_given(optimizer: str) -> None:
    config = Config("shards", "out", optimizer=optimizer)
    assert (config.lr, config.weight_decay) == OPTIMIZERS[optimizer]
    assert all(config.settings()[name] == getattr(config, name) for name in ("lr", "weight_decay"))
    assert Config("shards", "out", optimizer=optimizer, lr=0.5, weight_decay=0.0).settings()["lr"] == 0.5
    assert Config("shards", "out", optimizer=optimizer, lr=0.5, weight_decay=0.0).weight_decay == 0


def test_the_mask_weighs_as_its_loss_has_it_where_nothing_is_given() -> None:
    weights = {loss: Config("shards", "out", loss=loss).mask_weight for loss in LOSSES}
    assert weights == LOSSES == {loss: Criterion(loss).mask_weight for loss in LOSSES}
    assert Config("shards", "out", mask_weight=0.0).mask_weight == 0


def test_batch_and_network_are_small_on_a_cpu_and_large_on_a_gpu_where_none_is_given() -> None:
    config = Config("shards", "out")
    assert (config.on_device("cpu").model, config.on_device("cuda").model) == ("unet-24x2", "unet-s")
    assert Config("shards", "out", model="net").on_device("cpu").model == "net"
    for name in BY_DEVICE["model"].values():
        require_network(name)
    assert (config.on_device("cpu").batch_size, config.on_device("cuda").batch_size) == (8, 64)
    assert Config("shards", "out", batch_size=5).on_device("cuda").batch_size == 5
    assert config.resumed(config.on_device("cuda").settings(), given=()).on_device("cpu").batch_size == 64


@pytest.mark.parametrize("augment", [False, True])
def test_a_run_of_before_mirrors_could_be_had_alone_goes_on_as_it_was(augment: bool) -> None:
    old: Settings = {"lr": 3e-3, "weight_decay": 0.01, "model": "unet-8", "augment": augment}
    going_on = Config("shards", "out").resumed(old, given=())
    assert (going_on.mirror, going_on.augment) == (augment, augment)
    assert augmentation_of(going_on) == (Augmentation() if augment else None)


def test_sets_are_mirrored_alone_or_changed_in_all_ways() -> None:
    alone = augmentation_of(Config("shards", "out"))
    assert alone is not None
    assert {name: value for name, value in asdict(alone).items() if value != OFF[name]} == {"mirror": 0.5}
    assert augmentation_of(Config("shards", "out", augment=True)) == Augmentation()
    assert augmentation_of(Config("shards", "out", augment=True, mirror=False)) == Augmentation(mirror=0.0)
    assert augmentation_of(Config("shards", "out", mirror=False)) is None


def test_a_run_of_before_there_was_a_choice_of_optimizers_goes_on_with_adamw() -> None:
    old: Settings = {"lr": 3e-3, "weight_decay": 0.01, "model": "unet-8"}
    going_on = Config("shards", "out").resumed(old, given=())
    assert (going_on.optimizer, going_on.lr, going_on.weight_decay) == ("adamw", 3e-3, 0.01)


def test_paths_may_be_text() -> None:
    texts, paths = Config("a/shards", "a/out"), Config(Path("a/shards"), Path("a/out"))
    assert texts.settings() == paths.settings()


def test_a_device_may_go_by_its_name_in_pytorch() -> None:
    for device in ("cuda", "cuda:1", torch.device("cuda", 1)):
        assert Config("shards", "out", device=device).device == str(device)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="--device cuda:x: expected one of auto, gpu, cpu"):
        Config("shards", "out", device="cuda:x")


def test_shards_behind_a_url_have_a_window_and_a_resumed_run_keeps_its_order() -> None:
    assert Config("shards", "out").window is None
    assert Config("s3://bucket/shards", "out").window == URL_WINDOW
    assert Config("s3://bucket/shards", "out", window=0).window == 0
    local = Config("shards", "out").settings()
    assert Config("s3://bucket/shards", "out").resumed(local, given=()).window == 0
    remote = Config("s3://bucket/shards", "out").settings()
    assert Config("shards", "out").resumed(remote, given=()).window == URL_WINDOW
    Config("shards", "out").require_same({**local, "window": 0})
