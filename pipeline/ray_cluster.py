"""A Ray cluster that somebody has started: connecting to it, and what can be wrong with it, each in one line."""

import functools
import hashlib
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

from pipeline.installation import ROOT, install_hint

ADDRESS = "RAY_ADDRESS"
FOUND_SEC, CONNECT_SEC = 10.0, 60


class ClusterError(OSError):
    """A cluster that cannot be used, or has failed. No `InputError`, after which a new work would be removed."""


@contextmanager
def connected() -> Iterator[ModuleType]:
    """Connect to the cluster of RAY_ADDRESS, else to the one on this machine, and yield `ray`; none is ever started.

    A process that is connected already stays so. Raises `ClusterError` where `ray` or the cluster is missing.
    """
    try:
        import ray
    except ImportError:
        raise ClusterError(f"--engine ray needs Ray, which is missing here: {install_hint('ray')}") from None
    if ray.is_initialized():
        yield ray
        return
    _silence()
    address = _address()
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    except Exception as error:  # of many kinds: Ray's own, RuntimeError, ConnectionError, gRPC's
        raise ClusterError(f"the Ray cluster at {address} takes no work from here: {one_line(error)}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _address() -> str:
    """Where a cluster answers. Ray itself would ask for many minutes, and tell of it on standard error."""
    given = os.environ.get(ADDRESS, "")
    address, how = given, f"or give {ADDRESS} as HOST:PORT or ray://HOST:10001"
    if given in ("", "auto"):
        from ray._private.services import get_ray_address_from_environment

        try:
            address = get_ray_address_from_environment("auto", None)
        except ConnectionError:
            raise ClusterError(f"no Ray cluster runs on this machine: start one (ray start --head), {how}") from None
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        if not parts.hostname or not parts.port:
            raise ValueError("no host, or no port")
        socket.create_connection((parts.hostname, parts.port), FOUND_SEC).close()
    except (OSError, ValueError) as error:
        raise ClusterError(f"no Ray cluster answers at {address} ({error}): start one there, {how}") from None
    return address


def _silence() -> None:
    """Let Ray's news of lost workers not come between the lines of a command: what matters is raised."""
    from ray._private import worker

    worker.print_to_stdstream = lambda *_, **__: None


def one_line(error: BaseException) -> str:
    """The first line that an error has, shortened."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


@functools.cache
def code_version() -> str:
    """The version of fgbg that runs here, with a hash of the code that jobs run."""
    try:
        number = version("fgbg")
    except PackageNotFoundError:
        number = "unknown"
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    return f"{number} ({digest.hexdigest()[:8]})"


def require_same_code(expected: str) -> None:
    """Raise `ClusterError` unless the fgbg of this node is the one that has sent the job."""
    if (found := code_version()) != expected:
        raise ClusterError(
            f"node {node_name()} has fgbg {found}, and the command is {expected}: install the same on every node"
        )


def node_name() -> str:
    """This machine in messages."""
    return socket.gethostname()
