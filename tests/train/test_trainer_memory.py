"""Steps that find no memory get that of resident sets and are done again, or the run ends with a line that helps."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import InputError
from tests.loading.test_release import no_memory
from tests.train.test_trainer import assert_equal_runs, configuration, fit, without_curves
from train.checkpoint import load
from train.distributed import Distributed
from train.trainer import Trainer

__all__ = ["without_curves"]
STEPS = 16  # 2 epochs of 64 sets, 8 at a time


@pytest.fixture(scope="module")
def undisturbed(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that never ran out of memory."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    fit(Trainer(configuration(packed, out, batch_size=8)))
    return out


def run_out_at(steps: list[int], trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let these steps fail once each, when both passes are done and the weights are still as they were."""
    clip = torch.nn.utils.clip_grad_norm_

    def clip_or_fail(*arguments: Any, **options: Any) -> torch.Tensor:
        if trainer.step + 1 in steps:
            steps.remove(trainer.step + 1)
            raise no_memory()
        return clip(*arguments, **options)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip_or_fail)


WHY = "CUDA out of memory. Tried to allocate 2.00 GiB: the memory of"


@pytest.mark.usefixtures("without_curves")
@pytest.mark.parametrize("steps", [[12], [8, 12], [9, 16]])
def test_a_step_that_finds_no_memory_is_done_again_and_the_run_ends_in_the_same_bits(
    steps: list[int], packed: Path, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = list[str]()
    trainer = Trainer(configuration(packed, tmp_path, batch_size=8), say=said.append)
    run_out_at(left := list(steps), trainer, monkeypatch)
    fit(trainer)
    assert left == []
    assert trainer.step == STEPS
    assert_equal_runs(tmp_path, undisturbed)
    told = [line for line in said if WHY in line]
    assert [line.split(":")[0] for line in told] == [f"step {step}" for step in steps]
    ends = ["and later up to 30% of what is free then taken anew", "and no more stay"]
    assert [line.split("given back, ")[1] for line in told] == ends[: len(steps)]


@pytest.mark.usefixtures("without_curves")
@pytest.mark.parametrize(
    ("steps", "changes", "world"),
    [
        ([1], {}, 1),
        ([9], {"resident": "off"}, 1),
        ([9, 9, 9], {}, 1),  # those of the training, those of the validation, none
        ([9, 12, 15, 15], {}, 1),
        ([7], {}, 2),
    ],
)
def test_without_memory_to_give_back_the_run_ends_with_a_line_that_helps(
    steps: list[int], changes: dict[str, Any], world: int, packed: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    trainer = Trainer(configuration(packed, tmp_path, batch_size=8, checkpoint_every=1, **changes))
    trainer.ranks = Distributed(0, world)  # the other would wait within the step that is done again
    run_out_at(list(steps), trainer, monkeypatch)
    with pytest.raises(InputError) as error:
        fit(trainer)
    assert str(error.value) == (
        f"no memory for step {steps[-1]} with --model unet-4 --batch-size 8 --size 32 (CUDA out of memory. Tried to "
        "allocate 2.00 GiB): try a smaller --batch-size or --size, or --resident host or off"
    )
    assert (trainer.loader.release() is not None) == (world > 1)
    if steps[-1] > 1:
        assert load(tmp_path / "last.pt").state["step"] == steps[-1] - 1


def test_another_error_of_a_step_comes_through(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(configuration(packed, tmp_path))
    monkeypatch.setattr(trainer.learner, "train_step", lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        fit(trainer)


@pytest.mark.gpu
def test_on_a_gpu_a_step_that_is_too_large_takes_the_resident_sets_memory(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = list[str]()
    settings: dict[str, Any] = {"batch_size": 8, "device": "gpu", "resident": "device", "compile": "off"}
    trainer = Trainer(configuration(packed, tmp_path, **settings), say=said.append)
    train_step, free_bytes = trainer.learner.train_step, list[int]()

    def learn_with_more(*arguments: Any) -> Any:
        if trainer.step == 11 and trainer.loader._stages.cache is not None and trainer.loader._stages.cache.capacity:
            free_bytes.append(torch.cuda.mem_get_info()[0])
            torch.empty(2 * torch.cuda.mem_get_info()[1], dtype=torch.uint8, device="cuda")  # there is never so much
        return train_step(*arguments)

    monkeypatch.setattr(trainer.learner, "train_step", learn_with_more)
    fit(trainer)
    assert len(free_bytes) == 1
    assert trainer.step == STEPS
    [line] = [line for line in said if "given back" in line]
    assert line.startswith("step 12: CUDA out of memory")
