"""Engines: where jobs are done, by processes of this machine or on a Ray cluster."""

from pipeline.errors import InputError
from pipeline.workers import Workers, available_cores

ENGINES = LOCAL, RAY = "local", "ray"


def require_engine(engine: str) -> None:
    """Raise `InputError` for an engine that there is not."""
    if engine not in ENGINES:
        raise InputError(f"engine {engine!r}: expected one of {', '.join(ENGINES)}")


def workers_of(engine: str, count: int | None) -> Workers:
    """`count` workers of an engine; None: as many as there are cores, here or on the cluster."""
    if engine == LOCAL:
        return Workers(count or available_cores())
    from pipeline.ray_workers import RayWorkers  # here: it is for few

    return RayWorkers(count)
