"""What deploy/ holds is what Kubernetes, Docker and shells take, and the commands in it are ours."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.commands import ROOT, command

DEPLOY = ROOT / "deploy"
KUBERNETES = "1.33"
"""Of the oldest release that is looked after; its schemas are strict: no unknown key."""


def recipe(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def tool(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        pytest.skip(f"needs {name}: pip install -e '.[services]'")
    return found


def passes(*words: str | Path) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_shellcheck_finds_nothing_in_the_scripts() -> None:
    passes(tool("shellcheck"), *sorted((DEPLOY / "slurm").iterdir()))


def stand_ins(folder: Path, **programs: str) -> dict[str, str]:
    """An environment in which programs of Slurm are these lines of bash."""
    for name, lines in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{lines}\n")
        (folder / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "1", "SLURM_CPUS_PER_TASK": "1"}
    return {**os.environ, **slurm, "PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("words", "jobs"),
    [
        (["fgbg-pack", "SOURCE"], ["--parsable --array=0-2", "--parsable --dependency=afterok:7"]),
        (["fgbg-check", "--shards", "S"], ["--parsable --array=0-2"]),
        (["/opt/bin/fgbg-check", "--shards", "S"], ["--parsable --array=0-2"]),
        (["apptainer", "exec", "image", "fgbg-check"], ["--parsable --array=0-2"]),
    ],
)
def test_a_job_finishes_the_parts_of_commands_that_have_something_to_finish(
    words: list[str], jobs: list[str], tmp_path: Path
) -> None:
    environment = stand_ins(tmp_path, sbatch='echo "$@" >> "${0%/*}/jobs"; echo 7')
    script = DEPLOY / "slurm" / "parts.sh"
    subprocess.run([script, "3", *words], env=environment, check=True, capture_output=True)
    submitted = (tmp_path / "jobs").read_text().splitlines()
    assert all(line.endswith(f"part.sbatch {' '.join(words)}") for line in submitted)
    assert [line.startswith(job) for line, job in zip(submitted, jobs, strict=True)] == [True] * len(jobs)


def test_a_signal_while_the_step_ends_does_not_hide_its_exit_code(tmp_path: Path) -> None:
    step = "trap 'exit 75' USR1; sleep 0.3; echo begun; while :; do sleep 0.01; done"
    environment = stand_ins(tmp_path, srun=step, scontrol='echo "$@"')
    slowly = '() { builtin kill "$@" || return; [ "$1" != -USR1 ] || sleep 0.3; }'  # the step ends meanwhile
    environment["BASH_FUNC_kill%%"] = slowly
    script = [DEPLOY / "slurm" / "train.sbatch"]
    with subprocess.Popen(script, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.read() == "unfinished: job 1 goes back into the queue\nrequeue 1\n"
    assert process.returncode == 75


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    passes(tool("hadolint"), DEPLOY / "docker" / "Dockerfile")


def templates(document: Any) -> Iterator[Any]:
    """The document itself if it is of Kubernetes's own kinds; else what it holds of them."""
    if document["kind"] == "JobSet":
        for job in document["spec"]["replicatedJobs"]:
            yield {"apiVersion": "batch/v1", "kind": "Job"} | job["template"]
    elif document["kind"] == "RayJob":
        cluster = document["spec"]["rayClusterSpec"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            yield {"apiVersion": "v1", "kind": "Pod"} | group["template"]
    else:
        yield document


RECIPES = ("kubernetes/pack.yaml", "kubernetes/pack-finish.yaml", "kubernetes/train.yaml", "ray/rayjob.yaml")


@pytest.mark.parametrize("name", RECIPES)
def test_kubernetes_takes_the_recipe(name: str) -> None:
    checker = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    for template in templates(recipe(name)):
        checker.validate(template, KUBERNETES, strict=True)


def test_ray_takes_the_cluster() -> None:
    ray = pytest.importorskip("ray")
    schema = (Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text()
    pytest.importorskip("jsonschema").validate(recipe("ray/cluster.yaml"), json.loads(schema))


def container(job: Any) -> Any:
    [container] = job["spec"]["template"]["spec"]["containers"]
    return container


def commands() -> Iterator[tuple[str, list[str]]]:
    """Each command of a recipe, as words."""
    for name in ("pack", "pack-finish"):
        yield name, container(recipe(f"kubernetes/{name}.yaml"))["args"]
    [training] = templates(recipe("kubernetes/train.yaml"))
    yield "train", container(training)["args"]
    yield "ray", shlex.split(recipe("ray/rayjob.yaml")["spec"]["entrypoint"])
    yield "sky", shlex.split(recipe("skypilot/train.yaml")["run"].replace("~/fgbg/bin/", ""))
    for path in (*(DEPLOY / "slurm").iterdir(), *(DEPLOY / "ray").iterdir(), DEPLOY / "docker" / "Dockerfile"):
        text = path.read_text().replace(" \\\n#", "")
        for line in re.findall(r"^#.* (fgbg-\w+ -?.+)$", text, re.MULTILINE):
            yield path.name, shlex.split(line)


@pytest.mark.parametrize(("name", "words"), [pytest.param(*each, id=f"{each[0]} {each[1][0]}") for each in commands()])
def test_commands_of_the_recipes_are_ours(name: str, words: list[str]) -> None:
    words = [word.replace("$(JOB_COMPLETION_INDEX)", "31") for word in words]
    command(words[0]).make_context(words[0], words[1:])


def test_the_parts_of_the_indexed_job_are_all_there_and_are_finished_by_the_same_command() -> None:
    job = recipe("kubernetes/pack.yaml")
    *words, flag, part = container(job)["args"]
    assert (flag, part) == ("--part", f"$(JOB_COMPLETION_INDEX)/{job['spec']['completions']}")
    assert container(recipe("kubernetes/pack-finish.yaml"))["args"] == [*words, "--finish"]


def test_the_ranks_of_the_jobset_know_one_another() -> None:
    document = recipe("kubernetes/train.yaml")
    [job] = templates(document)
    environment = {entry["name"]: entry.get("value") for entry in container(job)["env"]}
    assert environment.keys() == {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    assert environment["WORLD_SIZE"] == str(job["spec"]["completions"]) == str(job["spec"]["parallelism"])
    name, [replicated] = document["metadata"]["name"], document["spec"]["replicatedJobs"]
    assert environment["MASTER_ADDR"] == f"{name}-{replicated['name']}-0-0.{name}"


def test_the_cluster_of_kuberay_has_the_ray_of_the_image() -> None:
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    assert recipe("ray/rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == pinned[1]
