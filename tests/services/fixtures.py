"""Fixtures of servers: each test gets a bucket, a container or a folder of its own, and the right credentials.

A test that uses one has the marker `services`; where the server is not installed it skips and names what to install.
"""

import base64
import hmac
import os
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from email.utils import formatdate
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest

from pipeline.storage import Url
from tests.commands import ROOT
from tests.services import keeper, servers

FIXTURES = {"s3", "s3_server", "web", "azure", "google", "slurm"}
OWN = ("AWS_", "AZURE_", "GOOGLE_", "STORAGE_EMULATOR_HOST")
"""Beginnings of the names of variables that a developer may have set for other storage."""

PATIENCE_SEC = 120
GOING_ON = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("services")


def _use(server: str, factory: pytest.TempPathFactory) -> dict[str, Any]:
    if missing := servers.missing(server):
        pytest.skip(f"needs {missing}")
    temporary = factory.getbasetemp()
    shared = temporary.parent if os.environ.get("PYTEST_XDIST_WORKER") else temporary
    return keeper.use(server, shared / "services")


def _use_storage(server: str, factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("obstore")
    return _use(server, factory)


class S3Server(NamedTuple):
    """Ceph's gateway."""

    port: int
    settings: str
    """Ceph's own, for its commands."""

    def environment(self, port: int | None = None) -> dict[str, str]:
        """Variables with which AWS's tools use it, or what is before it at another port."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port or self.port}",
            "AWS_ACCESS_KEY_ID": servers.S3_KEY,
            "AWS_SECRET_ACCESS_KEY": servers.S3_SECRET,
            "AWS_REGION": "us-east-1",
        }

    def new_bucket(self, key: str = servers.S3_KEY, secret: str = servers.S3_SECRET) -> Url:
        """A bucket that is empty."""
        name = f"bucket-{uuid4().hex[:12]}"
        obstore = pytest.importorskip("obstore")
        store = pytest.importorskip("obstore.store").S3Store(
            name,
            endpoint=f"http://127.0.0.1:{self.port}",
            access_key_id=key,
            secret_access_key=secret,
            region="us-east-1",
            client_options={"allow_http": True},
        )
        _put(obstore.sign(store, "PUT", "", timedelta(minutes=5)))
        return Url(f"s3://{name}")

    def administer(self, *words: str) -> None:
        """Run `radosgw-admin`."""
        environment = {**os.environ, "CEPH_CONF": self.settings}
        command = ["radosgw-admin", "-n", "client.rgw", *words]
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)


def _put(url: str, content: bytes = b"", method: str = "PUT", headers: dict[str, str] | None = None) -> None:
    request = urllib.request.Request(url, content, headers or {}, method=method)
    urllib.request.urlopen(request, timeout=60).close()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> S3Server:
    """Ceph's gateway; `s3` is what most tests need."""
    return S3Server(**_use_storage("ceph", tmp_path_factory))


@pytest.fixture
def no_cloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials or endpoints but those that a test sets."""
    for name in [name for name in os.environ if name.startswith(OWN)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws-credentials"))


@pytest.fixture
def s3(s3_server: S3Server, no_cloud: None, monkeypatch: pytest.MonkeyPatch) -> Url:
    """An empty bucket in S3, with its credentials in the environment."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return s3_server.new_bucket()


class WebFolder(NamedTuple):
    """A folder whose files a web server sends."""

    path: Path
    url: Url

    def at(self, location: str) -> Url:
        """The same files by another way of `servers.nginx`."""
        host, name = self.url.text.rsplit("/", 1)
        return Url(f"{host}/{location}/{name}")


@pytest.fixture
def web(no_cloud: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebFolder]:
    """An empty folder behind nginx."""
    facts = _use_storage("nginx", tmp_path_factory)
    folder = Path(facts["files"]) / uuid4().hex[:12]
    folder.mkdir()
    yield WebFolder(folder, Url(f"http://127.0.0.1:{facts['port']}/{folder.name}"))
    shutil.rmtree(folder)


@pytest.fixture
def azure(no_cloud: None, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Url:
    """An empty container in Azurite, with its credentials in the environment."""
    facts = _use_storage("azurite", tmp_path_factory)
    endpoint = f"http://127.0.0.1:{facts['port']}/{servers.AZURE_ACCOUNT}"
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", endpoint)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", servers.AZURE_KEY)
    name = f"container-{uuid4().hex[:12]}"
    _create_container(endpoint, name)
    return Url(f"az://{servers.AZURE_ACCOUNT}/{name}")


def _create_container(endpoint: str, name: str) -> None:
    """As learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key describes it."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2020-10-02"}
    signed = ["PUT", *[""] * 4, "application/octet-stream", *[""] * 6, *(f"{key}:{headers[key]}" for key in headers)]
    resource = f"/{servers.AZURE_ACCOUNT}/{servers.AZURE_ACCOUNT}/{name}"
    text = "\n".join((*signed, resource, "restype:container"))
    digest = base64.b64encode(hmac.digest(base64.b64decode(servers.AZURE_KEY), text.encode(), "sha256")).decode()
    headers |= {"Authorization": f"SharedKey {servers.AZURE_ACCOUNT}:{digest}"}
    _put(f"{endpoint}/{name}?restype=container", headers={**headers, "Content-Type": "application/octet-stream"})


class GoogleBucket(NamedTuple):
    """A bucket of a server that only reads as obstore asks it to."""

    url: Url
    port: int

    def put(self, name: str, content: bytes) -> None:
        """Write an object as that server takes it."""
        query = urllib.parse.urlencode({"uploadType": "media", "name": name})
        where = f"http://127.0.0.1:{self.port}/upload/storage/v1/b/{self.url.name}/o?{query}"
        _put(where, content, "POST")


@pytest.fixture
def google(no_cloud: None, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> GoogleBucket:
    """An empty bucket in a server that speaks Google Cloud Storage's API."""
    port = _use_storage("fake_gcs_server", tmp_path_factory)["port"]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    name = f"bucket-{uuid4().hex[:12]}"
    content = f'{{"name": "{name}"}}'.encode()
    _put(f"http://127.0.0.1:{port}/storage/v1/b", content, "POST", {"Content-Type": "application/json"})
    return GoogleBucket(Url(f"gs://{name}"), port)


class Slurm:
    """A cluster of two nodes; see `servers.slurm`. Its jobs find the commands of this checkout."""

    def __init__(self, settings: dict[str, str], folder: Path) -> None:
        paths = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        self.environment = own | paths | settings | {"GLOO_SOCKET_IFNAME": "lo"}  # whatever name this host goes by
        self._folder = folder

    def call(self, *command: str | Path) -> str:
        """What a command prints, which must succeed. Jobs that it submits write into the folder of this cluster."""
        words = [str(word) for word in command]
        done = subprocess.run(
            words, cwd=self._folder, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def facts(self, job: str) -> dict[str, str]:
        """What Slurm says of a job, as JobState and Restarts."""
        text = self.call("scontrol", "--oneliner", "show", "job", job)
        return dict(pair.partition("=")[::2] for pair in text.split() if "=" in pair)

    def wait(self, job: str, *states: str) -> dict[str, str]:
        """The same, once the job is in one of `states`; fails if it ends otherwise."""
        for _ in range(PATIENCE_SEC * 20):
            facts = self.facts(job)
            if facts["JobState"] in states:
                return facts
            assert facts["JobState"] in GOING_ON, f"{facts}\n{self.output(job)}"
            time.sleep(0.05)
        raise AssertionError(f"job {job} hangs\n{self.output(job)}")

    def hasten(self, job: str) -> None:
        """Have a job that goes back into the queue start at once, and not after `cred_expire`."""
        self.wait(job, "PENDING")
        self.call("scontrol", "update", f"JobId={job}", "StartTime=now+2seconds")  # not in the second it was stopped in

    def output(self, job: str) -> str:
        """What a job has printed."""
        path = self._folder / f"slurm-{job}.out"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def slurm(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Slurm with two nodes; the test's jobs end with it."""
    cluster = Slurm(_use("slurm", tmp_path_factory), tmp_path)
    yield cluster
    cluster.call("scancel", "--user=root")
    while cluster.call("squeue", "--noheader"):
        time.sleep(0.05)
