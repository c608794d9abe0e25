"""On a cluster of two nodes, which the tests share: a core each, and nothing on the network but loopback."""

import functools
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner, Result

import tools.depth
import tools.pack
from pipeline.composing.compose import Progress as ComposeProgress
from pipeline.composing.compose import compose
from pipeline.composing.composer import ComposeOptions
from pipeline.composing.synthetic.source import Synthetic
from pipeline.depth_estimation.actors import ActorPlan, Estimator, estimate_on_actors, load_estimator
from pipeline.depth_estimation.model import DepthModel, DepthModelSettings
from pipeline.depth_estimation.run import EstimateError, EstimateOptions
from pipeline.depth_estimation.shards import rewrite_with_depth
from pipeline.engines import RAY
from pipeline.errors import InputError
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack
from pipeline.ray_cluster import ClusterError, code_version, require_same_code
from pipeline.ray_workers import RayActors, RayWorkers, run_job
from pipeline.remote_resume import NEWEST
from pipeline.storage import Folder, storage_of
from pipeline.verify.check import CheckOptions, check
from pipeline.workers import Progress
from tests.commands import ROOT
from tests.networks import weighted_sum
from tests.ray_nodes import Nodes, is_installed
from tests.samples import files_below, write_sets

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(not is_installed(), reason="needs Ray: pip install '.[ray]'"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
SETS, PER_SHARD = 120, 8


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """Two nodes, to which this process is connected, as are the commands that it starts."""
    import ray

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", str(ROOT))
        nodes = Nodes()
        nodes.add()
        patched.setenv("RAY_ADDRESS", nodes.address)
        ray.init(nodes.address, log_to_driver=False, logging_level="ERROR")
        yield nodes
        ray.shutdown()
        nodes.close()


def compose_shards(target: Any, progress: Callable[[int, int], None] | None = None, **settings: Any) -> None:
    how = ComposeProgress(sets=progress) if progress else None
    options, source = ComposeOptions(sets=SETS, placements=None), Synthetic(0, 4, 4)
    settings = {"sets_per_shard": PER_SHARD, "engine": RAY, **settings}
    compose(target, source, options, {}, progress=how, **settings)


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of shards that this process has composed."""
    shards = tmp_path_factory.mktemp("composed") / "shards"
    compose_shards(shards, engine="local", workers=1)
    return files_below(shards)


def square(number: int) -> int:
    if number == 13:
        raise InputError("13 is unlucky")
    return number * number


def test_results_come_in_order_and_errors_come_through_as_themselves(nodes: Any) -> None:
    with RayWorkers(None) as pool:
        assert list(pool.map(square, range(10))) == [number**2 for number in range(10)]
        results = pool.map(square, range(10, 20))
        assert [next(results) for _ in range(3)] == [100, 121, 144]
        with pytest.raises(InputError, match=r"^13 is unlucky$"):
            next(results)


def test_jobs_are_taken_only_a_few_ahead(nodes: Any) -> None:
    taken = list[int]()

    def jobs() -> Iterator[int]:
        for number in range(20, 1000):
            taken.append(number)
            yield number

    with RayWorkers(2) as pool:
        results = pool.map(square, jobs())
        assert next(results) == 400
        results.close()  # type: ignore[attr-defined]
    assert len(taken) <= 6


def lose_the_process(mark: Path) -> str:
    mark.touch()
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


def test_a_job_that_kills_its_process_has_an_end(nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.ray_workers.MAX_RETRIES", 1)
    with RayWorkers(None) as pool, pytest.raises(ClusterError, match="has lost its process or its node 2 times; is me"):
        list(pool.map(lose_the_process, [tmp_path / "mark"]))


def start_every_other_time(folder: Path) -> Path:
    """The state of an actor."""
    (folder / f"start {os.getpid()}").touch()
    if len(list(folder.glob("start *"))) % 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return folder


def end_at_first(folder: Path, number: int) -> int:
    """The job of an actor."""
    if not (folder / str(number)).exists():
        lose_the_process(folder / str(number))
    return number


def test_an_actor_may_be_lost_at_its_start_now_and_then(
    nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.ray_workers.MAX_RETRIES", 1)
    with RayActors[Path](1, None) as actors:
        assert list(actors.map(start_every_other_time, tmp_path, end_at_first, [7])) == [7]


def read_what_is_missing(path: Path) -> bytes:
    return path.read_bytes()


def test_a_folder_that_a_node_does_not_see_is_told(nodes: Any, tmp_path: Path) -> None:
    with RayWorkers(None) as pool, pytest.raises(FileNotFoundError) as caught:
        list(pool.map(read_what_is_missing, [tmp_path / "none"]))
    [note] = caught.value.__notes__
    assert note.endswith("which must see the same folders under the same paths as all others")


def import_none_such(_: int) -> None:
    import none_such  # type: ignore[import-not-found] # noqa: F401


def test_a_library_that_a_node_lacks_is_told(nodes: Any) -> None:
    lacking = r"^a node of the Ray cluster lacks a library \(No module named 'none_such'\): install the same on e"
    with RayWorkers(None) as pool, pytest.raises(ClusterError, match=lacking):
        list(pool.map(import_none_such, [1]))


def test_composing_gives_the_same_bytes(
    nodes: Any, composed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    compose_shards(Path("shards"))
    assert files_below(tmp_path / "shards") == composed
    compose_shards(Folder(tmp_path / "remote"), workers=1)  # a folder behind the seam of object storage
    assert files_below(tmp_path / "remote") == composed


def test_loose_files_are_the_same(nodes: Any, tmp_path: Path) -> None:
    for engine in ("local", RAY):
        compose_shards(tmp_path / engine, sets_per_shard=None, engine=engine, workers=1)
    assert files_below(tmp_path / "local") == files_below(tmp_path / RAY)


def kill_a_worker(name: str = "ray::write_shard") -> bool:
    """Kill a process that does a job on the cluster; whether there was one."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it may have ended
            if " ".join(process.cmdline()).startswith(name):
                process.kill()
                return True
    return False


def test_a_killed_worker_changes_no_byte(nodes: Any, composed: dict[str, bytes], tmp_path: Path) -> None:
    killed = list[bool]()
    compose_shards(tmp_path / "shards", lambda *_: killed.append(sum(killed) < 2 and kill_a_worker()))
    assert any(killed)
    assert files_below(tmp_path / "shards") == composed


def test_a_lost_node_changes_no_byte(nodes: Any, composed: dict[str, bytes], tmp_path: Path) -> None:
    extra = [nodes.add(2)]

    def lose(more: int, total: int) -> None:
        if more and extra:
            nodes.remove(extra.pop())

    compose_shards(tmp_path / "shards", lose)
    assert not extra
    assert files_below(tmp_path / "shards") == composed


def start(*arguments: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tools.compose", "--synthetic", "--sets", SETS, "--sets-per-shard", PER_SHARD]
    command += ["--streets", 4, "--cars", 4, "--engine", RAY, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(list(map(str, command)), stdout=pipe, stderr=pipe, text=True, cwd=ROOT)


def wait_for(there: Callable[[], object], seconds: float = 60) -> None:
    end_sec = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end_sec
        time.sleep(0.01)


def test_ctrl_c_and_a_killed_command_are_gone_on_with(nodes: Any, composed: dict[str, bytes], tmp_path: Path) -> None:
    shards, records = tmp_path / "shards", tmp_path / "shards" / ".unfinished"
    for signum in (signal.SIGINT, signal.SIGKILL):
        before = len(list(records.glob("sets-*.npz")))
        process = start("--shards", shards)
        wait_for(lambda before=before: len(list(records.glob("sets-*.npz"))) > before)  # type: ignore[misc]
        process.send_signal(signum)
        output, errors = process.communicate()
        assert process.returncode == (1 if signum == signal.SIGINT else -signum)
        assert output == ""
        if signum == signal.SIGINT:
            kept = f"interrupted; what is done is kept in {shards}: the same command continues it"
            assert errors.split("\n")[1:-1] == [kept, "", "Aborted!"]
            assert not list(shards.glob(".*.partial"))
    process = start("--shards", shards)
    output, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    assert output.startswith(f"{shards}: ")
    assert files_below(shards) == composed


def test_packing_gives_the_same_bytes(nodes: Any, source: Path, packed: Path, planes: Path, tmp_path: Path) -> None:
    done = list[int]()
    pack(source, tmp_path / "jpeg", PackOptions(sets_per_shard=16, engine=RAY), Progress(sets_done=done.append))
    assert files_below(tmp_path / "jpeg") == files_below(packed)
    assert sum(done) == 100
    options = PackOptions(sets_per_shard=16, engine=RAY, codec="planes", size=16)
    pack(source, Folder(tmp_path / "planes"), options)
    (tmp_path / "planes" / NEWEST).unlink()
    assert files_below(tmp_path / "planes") == files_below(planes)


def depth(bare: Path, shards: Path, model: Path, *more: str) -> Result:
    arguments = [bare, "--model", model, "--shards", shards, "--batch-size", 4, "--engine", RAY, *more]
    return CliRunner().invoke(tools.depth.main, list(map(str, arguments)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weighted_sum(tmp_path_factory.mktemp("model") / "net.onnx")


@pytest.fixture(scope="module")
def with_depth(bare: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of shards whose depth this process has made."""
    shards = tmp_path_factory.mktemp("depth") / "shards"
    rewrite_with_depth(bare, shards, DepthModel(model, DepthModelSettings(), 4), EstimateOptions())
    return files_below(shards)


def test_depth_is_the_same_though_actors_are_killed(
    nodes: Any, bare: Path, model: Path, with_depth: dict[str, bytes], tmp_path: Path
) -> None:
    killed, done = list[bool](), list[int]()

    def sets_done(more: int) -> None:
        done.append(more)
        killed.append(sum(killed) < 2 and kill_a_worker("ray::Actor"))

    with RayActors[Estimator](None, None) as actors:
        rewrite_with_depth(
            bare, tmp_path / "shards", DepthModel(model, DepthModelSettings(), 4), EstimateOptions(),
            Progress(sets_done=sets_done), way=functools.partial(estimate_on_actors, actors),
        )  # fmt: skip
    assert any(killed)
    assert sum(done) == 100
    assert files_below(tmp_path / "shards") == with_depth


def test_the_kind_of_gpu_belongs_to_a_depth_work(
    nodes: Any, bare: Path, model: Path, with_depth: dict[str, bytes], tmp_path: Path
) -> None:
    result = depth(bare, tmp_path / "shards", model)
    assert result.exit_code == 0, result.output
    assert "made 100 depth maps with net.onnx on the CPU, " in result.output
    assert files_below(tmp_path / "shards") == with_depth
    result = depth(bare, tmp_path / "shards", model, "--accelerator", "H100")
    assert 'holds a complete fgbg-depth with accelerator null, now it is "H100"' in result.output


def test_a_model_that_differs_on_a_node_is_one_line(bare: Path, model: Path) -> None:
    plan = ActorPlan(
        bare, "?", model, DepthModelSettings(), 4, {"model_sha256": "?"}, EstimateOptions(workers=1), on_gpu=False
    )
    with pytest.raises(EstimateError, match=rf"^{model} is another one on node \S+: give a path that all nodes share$"):
        load_estimator(plan)


def test_checking_finds_the_same(nodes: Any, packed: Path, tmp_path: Path) -> None:
    shards = shutil.copytree(packed, tmp_path / "shards")
    assert check(shards, CheckOptions(engine=RAY)).damage == []
    tar = shards / "sets-000001.tar"
    tar.write_bytes(tar.read_bytes().replace(b"JFIF", b"JFIX", 3))
    (shards / "sets-000002.tar").unlink()
    found = check(shards, CheckOptions(engine=RAY)).damage
    assert found == check(shards, CheckOptions(workers=1)).damage
    assert len(found) > 2


def test_bad_input_is_one_line(nodes: Any, tmp_path: Path) -> None:
    bad = next((write_sets(tmp_path / "source", 2, 2) / "fg_bg").rglob("*.jpg"))
    bad.write_bytes(b"no picture")
    arguments = [tmp_path / "source", "--shards", tmp_path / "shards", "--strict", "--engine", RAY]
    result = CliRunner().invoke(tools.pack.main, list(map(str, arguments)))
    assert result.exit_code == 1
    [line] = result.output.splitlines()
    assert line.startswith(f"Error: {bad.relative_to(tmp_path / 'source')}: ")
    assert not (tmp_path / "shards").exists()


def read_a_bucket(_: int) -> None:
    storage_of("s3://bucket/sets").read_all("a.tar")


def open_a_network(_: int) -> None:
    DepthModel(Path(__file__), DepthModelSettings(), 1)


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (read_a_bucket, r"node .+: AWS_PROFILE is nobody, which ~/\.aws/config and ~/\.aws/credentials do not have"),
        (open_a_network, r"node .+: onnxruntime is missing: pip install onnxruntime"),
    ],
)
def test_what_a_node_lacks_is_no_fault_of_the_input(
    function: Callable[[int], None], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After which the work would be removed."""
    monkeypatch.setattr("pipeline.resume._elsewhere", "")  # and again so afterwards
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ClusterError, match=rf"^{line}"):
        run_job(code_version(), str(Path.cwd()), pickle.dumps((function, 1)), [])
    with pytest.raises(InputError, match=r"^13 is unlucky$"):
        run_job(code_version(), str(Path.cwd()), pickle.dumps((square, 13)), [])


def test_other_code_on_a_node_is_refused() -> None:
    with pytest.raises(ClusterError, match=r"has fgbg .+, and the command is 0\.0 \(1\): install the same on every n"):
        require_same_code("0.0 (1)")


@pytest.mark.parametrize(
    ("address", "line"),
    [
        (
            "127.0.0.1:1",
            r"no Ray cluster answers at 127\.0\.0\.1:1 \(.*refused\): start one there, or give RAY",
        ),
        ("ray://127.0.0.1:1", r"no Ray cluster answers at ray://127\.0\.0\.1:1 \(.*refused\)"),
        ("nowhere", r"no Ray cluster answers at nowhere \(no host, or no port\)"),
    ],
)
def test_no_cluster_is_one_line(address: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError, match=line), RayWorkers(None):
        pass


def test_no_cluster_on_this_machine_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray._private import services

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(services, "find_gcs_addresses", set)
    monkeypatch.setattr(services, "find_bootstrap_address", lambda _: None)
    line = r"^no Ray cluster runs on this machine: start one \(ray start --head\), or give RAY_ADDRESS as HOST:PORT or "
    with pytest.raises(ClusterError, match=line), RayWorkers(None):
        pass


def test_a_missing_ray_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError, match=r"--engine ray needs Ray, which is missing here: pip install .*\[ray\]"):
        RayWorkers(None).__enter__()
