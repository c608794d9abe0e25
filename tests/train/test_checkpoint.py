import os
from pathlib import Path

import pytest
import torch

from pipeline.errors import InputError
from pipeline.format.manifest import Manifest
from train.checkpoint import FORMAT, Checkpoint, load, load_network, load_run, save, weights, write_archive
from train.model import UNet
from train.optim import adamw

CPU = torch.device("cpu")


def a_checkpoint(width: int = 4) -> Checkpoint:
    network = UNet(width)
    optimizer = adamw(network, lr=0.1, weight_decay=0.1)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = {
        "step": 1, "settings": {"model": f"unet-{width}"}, "manifest": "0", "loader": {"epoch": 0, "position": 1},
        "sets_seen": 64, "best_iou": 0.5, "scores": None,
    }  # fmt: skip
    return Checkpoint(network.state_dict(), optimizer.state_dict(), state)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    saved, path = a_checkpoint(), tmp_path / "last.pt"
    save(path, saved)
    loaded = load(path)
    assert loaded.state == {"format": FORMAT, "sealed": True, **saved.state}
    assert loaded.network.keys() == saved.network.keys()
    assert all(torch.equal(loaded.network[name], saved.network[name]) for name in saved.network)
    for number, moments in saved.optimizer["state"].items():
        assert all(torch.equal(loaded.optimizer["state"][number][name], moments[name]) for name in moments)
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_checkpoint_holds_nothing_but_tensors_and_plain_values(tmp_path: Path) -> None:
    save(tmp_path / "last.pt", a_checkpoint())
    content = torch.load(tmp_path / "last.pt", weights_only=True)
    assert isinstance(content["state"], str)


def test_a_write_that_fails_leaves_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    save(path, a_checkpoint())
    before = path.read_bytes()

    def disk_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        save(path, a_checkpoint(width=8))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_checkpoint_cut_short_is_named(tmp_path: Path, share: float) -> None:
    path = tmp_path / "last.pt"
    save(path, a_checkpoint())
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(InputError, match=r"last\.pt: not a whole checkpoint") as error:
        load(path)
    assert "\n" not in str(error.value)


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    for content in ({"some": torch.zeros(1)}, [1, 2], {"network": {}, "optimizer": {}, "state": "{"}):
        write_archive(path, content)
        with pytest.raises(InputError, match="not a whole checkpoint"):
            load(path)
    path.write_text("hello")
    with pytest.raises(InputError, match="not a whole checkpoint"):
        load(path)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"last\.pt: no such checkpoint"):
        load(tmp_path / "last.pt")


def test_another_format_is_refused(tmp_path: Path) -> None:
    checkpoint = a_checkpoint()
    save(tmp_path / "last.pt", checkpoint._replace(state={"format": 99}))
    with pytest.raises(InputError, match="format 99, but this version reads 1"):
        load(tmp_path / "last.pt")


def test_what_lacks_settings_is_refused(tmp_path: Path) -> None:
    checkpoint = a_checkpoint()
    save(tmp_path / "last.pt", checkpoint._replace(state={"step": 1, "manifest": "0"}))
    with pytest.raises(InputError, match=r"last\.pt: a checkpoint without settings; expected one that .* fgbg-train"):
        load(tmp_path / "last.pt")


def test_weights_of_another_network_are_refused_with_both_shapes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"last\.pt: .* is float32 \[.*, but here it is float32 \["):
        load_network(UNet(4), UNet(8).state_dict(), tmp_path / "last.pt")
    weights = UNet(4).state_dict()
    del weights["mask_head.draw.bias"]
    with pytest.raises(InputError, match=r"mask_head\.draw\.bias is missing, but here it is float32 \[4\]"):
        load_network(UNet(4), weights, tmp_path / "last.pt")


def test_a_run_is_what_its_checkpoint_says(trained: Path, packed: Path) -> None:
    saved, run = load(trained / "last.pt"), load_run(trained, "last", CPU)
    assert (run.checkpoint, run.step) == (trained / "last.pt", saved.state["step"])
    assert run.manifest == Manifest.load(packed).sha256
    assert (run.config.size, run.config.model) == (32, "unet-4")
    assert not run.network.training
    assert all(torch.equal(run.network.state_dict()[name], of) for name, of in weights(saved).items())


def test_shards_are_those_that_are_given(trained: Path, tmp_path: Path) -> None:
    assert load_run(trained, "best", CPU, tmp_path).config.shards == tmp_path


def test_only_checkpoints_that_can_be_asked_for_are_offered(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes((trained / "last.pt").read_bytes())
    (tmp_path / "previous.pt").write_bytes(b"")
    with pytest.raises(InputError, match=r"no validation yet; there is --checkpoint last$"):
        load_run(tmp_path, "best", CPU)


@pytest.mark.parametrize("kept", [True, False])
def test_averaged_weights_are_used_where_they_are_kept(trained: Path, tmp_path: Path, kept: bool) -> None:
    saved = load(trained / "best.pt")
    ema = {name: torch.full_like(of, 3) for name, of in saved.network.items()} if kept else None
    save(tmp_path / "best.pt", Checkpoint(saved.network, saved.optimizer, saved.state, ema=ema))
    expected = ema or saved.network
    found = load_run(tmp_path, "best", CPU).network.state_dict()
    assert all(torch.equal(found[name], of) for name, of in expected.items())
