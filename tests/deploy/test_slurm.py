"""The scripts in deploy/slurm on a Slurm of two nodes, as they are."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

from tests.commands import ROOT
from tests.services.fixtures import PATIENCE_SEC, Slurm

SCRIPTS = ROOT / "deploy" / "slurm"
EPOCHS, STEPS = 2, 64  # of 64 sets, two a step
TRAINING = ["--epochs", str(EPOCHS), "--batch-size", "2", "--log-every", "1", "--size", "32", "--model", "unet-4"]
CPU = ["--device", "cpu", "--no-report"]


def steps_logged(run: Path) -> list[int]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line["step"] for line in map(json.loads, lines) if line["kind"] == "train"]


def wait_until(there: Callable[[], object]) -> None:
    for _ in range(PATIENCE_SEC * 20):
        if there():
            return
        time.sleep(0.05)
    raise AssertionError("it does not begin")


def test_a_training_over_two_nodes_goes_back_into_the_queue_and_on_to_its_end(
    slurm: Slurm, packed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    places = ["--shards", str(packed), "--out", str(run)]
    job = slurm.call("sbatch", "--parsable", SCRIPTS / "train.sbatch", *places, *TRAINING, *CPU)
    wait_until(lambda: steps_logged(run))
    slurm.call("scancel", "--batch", "--signal=USR1", job)  # as Slurm does before the time limit
    slurm.hasten(job)
    stopped = max(steps_logged(run))
    done = slurm.wait(job, "COMPLETED")
    assert (done["Restarts"], done["ExitCode"], done["NodeList"]) == ("1", "0:0", "n[1-2]")
    assert 0 < stopped < STEPS
    assert steps_logged(run) == list(range(1, STEPS + 1))
    output = slurm.output(job)
    assert f"stopped after step {stopped}" in output
    assert f"unfinished: job {job} goes back into the queue" in output
    assert re.search(rf"^trained {EPOCHS} epochs, {STEPS} steps, {STEPS * 2} sets", output, re.MULTILINE)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_array_packs_in_parts_and_the_job_after_it_ends_in_the_bytes_of_one_run(
    slurm: Slurm, source: Path, packed: Path, tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    flags = ["--shards", str(shards), "--sets-per-shard", "16", "--workers", "1"]
    array, finish = re.findall(r"job (\d+)", slurm.call(SCRIPTS / "parts.sh", "3", "fgbg-pack", source, *flags))
    slurm.wait(f"{array}_1", "RUNNING")
    slurm.call("scontrol", "requeue", f"{array}_1")
    slurm.hasten(f"{array}_1")
    slurm.wait(finish, "COMPLETED")
    assert slurm.facts(f"{array}_1")["Restarts"] == "1"
    assert contents(shards) == contents(packed)


def test_a_part_whose_time_is_up_goes_back_into_the_queue_alone(slurm: Slurm) -> None:
    slow = '[ "${SLURM_RESTART_COUNT-0} $SLURM_ARRAY_TASK_ID" != "0 1" ] || sleep 100'
    told = slurm.call(SCRIPTS / "parts.sh", "2", "bash", "-c", f'echo "$@"; {slow}', "command")
    array, finish = re.findall(r"job (\d+)", told)
    wait_until(lambda: slurm.output(f"{array}_1"))
    slurm.call("scancel", "--batch", "--signal=USR1", f"{array}_1")
    slurm.hasten(f"{array}_1")
    slurm.wait(finish, "COMPLETED")
    assert [slurm.facts(f"{array}_{task}")["Restarts"] for task in range(2)] == ["0", "1"]
    own_lines = {line for line in slurm.output(f"{array}_1").splitlines() if line.startswith("--")}
    assert (own_lines, slurm.output(finish)) == ({"--part 1/2"}, "--finish\n")
