from pathlib import Path

import pytest
import torch

from pipeline.errors import InputError
from pipeline.format.manifest import Manifest
from tests.tools.test_train_command import trained_on
from train.checkpoint import Checkpoint, load, load_run, save, weights

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_on(packed, tmp_path_factory.mktemp("trained") / "run")


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
