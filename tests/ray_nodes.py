"""A Ray cluster of virtual nodes on this machine, for tests and benchmarks; it is bound to loopback alone."""

import importlib.util
import os
import shutil
import tempfile
from typing import Any

LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Lets Ray keep to 127.0.0.1, as on Windows; else it takes the address by which others reach the machine."""
ENVIRONMENT = LOOPBACK | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
os.environ.update(ENVIRONMENT)  # before Ray is imported, which reads them then


def is_installed() -> bool:
    """Whether Ray is there; it is not imported."""
    return importlib.util.find_spec("ray") is not None


class Nodes:
    """The nodes of a cluster; the first, of one core, stays."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.folder = tempfile.mkdtemp(prefix="ray-")  # not the usual one, by which other commands would find it
        self._cluster: Any = Cluster(True, head_node_args=self._settings(1) | {"temp_dir": self.folder})
        self.address = str(self._cluster.address)

    def _settings(self, cores: int) -> dict[str, Any]:
        return {
            "num_cpus": cores,
            "node_ip_address": "127.0.0.1",
            "include_dashboard": False,
            "object_store_memory": 100 << 20,
        }

    def add(self, cores: int = 1) -> Any:
        """Another node."""
        return self._cluster.add_node(**self._settings(cores))

    def remove(self, node: Any) -> None:
        """Kill a node and all that runs on it."""
        self._cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        """End the cluster."""
        self._cluster.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)
