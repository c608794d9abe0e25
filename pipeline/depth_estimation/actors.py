"""Depth on a Ray cluster: each actor has the network open, on a GPU of its own, and writes one shard at a time."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.depth_estimation.model import DepthModel, DepthModelSettings
from pipeline.depth_estimation.run import EstimateError, EstimateOptions, EstimateReport, estimate
from pipeline.depth_estimation.shards import ShardsTarget
from pipeline.errors import InputError, Problem
from pipeline.loading.shard_reader import ShardReader
from pipeline.packing.target import ShardPlace, Target
from pipeline.ray_cluster import node_name
from pipeline.ray_workers import RayActors
from pipeline.storage import Location
from pipeline.workers import Progress


class ActorPlan(NamedTuple):
    """What an actor needs for its jobs."""

    source: Location
    sha256: str
    """Of the manifest."""
    model: Path
    settings: DepthModelSettings
    batch_size: int
    arguments: dict[str, Any]
    """Of the model that the command has."""
    options: EstimateOptions
    on_gpu: bool


class Estimator(NamedTuple):
    """An open model and the shards that it works on."""

    reader: ShardReader
    model: DepthModel
    options: EstimateOptions


def load_estimator(plan: ActorPlan) -> Estimator:
    """Raises `EstimateError` where the model, or the source, is not that of the command."""
    try:
        threads = 0 if plan.on_gpu else plan.options.workers
        model = DepthModel(plan.model, plan.settings, plan.batch_size, threads)
        reader = ShardReader.open(plan.source, depth=False)
    except InputError as error:
        raise EstimateError(f"node {node_name()}: {error}") from error
    if model.arguments() != plan.arguments or reader.manifest.sha256 != plan.sha256:
        changed = plan.source if model.arguments() == plan.arguments else plan.model
        raise EstimateError(f"{changed} is another one on node {node_name()}: give a path that all nodes share")
    if plan.on_gpu and model.device != "GPU":
        raise EstimateError(
            f"node {node_name()} has a GPU, which its onnxruntime does not use: install onnxruntime-gpu"
        )
    return Estimator(reader, model, plan.options)


class _EstimateShard(NamedTuple):
    shard: int
    place: ShardPlace


def _estimate_shard(estimator: Estimator, job: _EstimateShard) -> EstimateReport:
    with ShardsTarget(estimator.reader, lambda _: job.place) as target:
        batches = target.batches([job.shard], estimator.model.batch_size)
        return estimate(estimator.model, target, batches, estimator.options)


def estimate_on_actors(
    actors: RayActors[Estimator],
    reader: ShardReader,
    target: Target,
    shards: Sequence[int],
    model: DepthModel,
    options: EstimateOptions,
    progress: Progress,
) -> EstimateReport:
    """Write some shards; an actor does one at a time."""
    start, problems, sets, seconds, model_sec = time.monotonic(), list[Problem](), 0, 0.0, 0.0
    about = model.path, model.settings, model.batch_size, model.arguments()
    plan = ActorPlan(
        reader.location, reader.manifest.sha256, *about, replace(options, workers=actors.cores), actors.on_gpu
    )
    jobs = (_EstimateShard(shard, target.place(shard)) for shard in shards)
    for report in actors.map(load_estimator, plan, _estimate_shard, jobs) if shards else ():
        problems += report.problems
        sets, seconds, model_sec = sets + report.sets, seconds + report.seconds, model_sec + report.model_sec
        progress.sets_done(report.sets + len(report.problems))
    target.collect(len(reader.manifest.shards))
    took_sec = time.monotonic() - start
    return EstimateReport(sets, problems, took_sec, model_sec / (seconds or 1) * took_sec)
