"""Sample on a Ray cluster. The results come back to this process, which writes them."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import PicklingError
from typing import Any

import torch

from entropy_probe.errors import InputError
from entropy_probe.extras import name_missing_extra
from entropy_probe.interruption import delay_interrupt
from entropy_probe.models import ModelSource
from entropy_probe.paths import working_folder
from entropy_probe.runs.engines import TakeTask, TaskResult
from entropy_probe.runs.manifest import Manifest
from entropy_probe.runs.ray_workers import Worker, WorkerPool


@dataclass(frozen=True)
class RayEngine:
    """Samples on a Ray cluster, with one worker per GPU, or per group of CPUs.

    A CPU worker uses as many CPUs as torch has threads in this process. With the same number of threads, the records
    of CPU workers are bit-identical to those of a local sweep.

    Only this process writes files, so the workers need no shared folder. The cells of a worker or node that dies are
    sampled by another worker. If three workers die on a batch, it is split into halves, until the cells that kill
    workers are found and recorded as failed. If no node is left, the sweep waits ten minutes for a new one.

    Attributes:
        address: address of the cluster, as for `ray.init`. By default, the connected cluster, a running one, or a
            new one on this machine.
        model: hub id, folder, bundled name or `models.ModelSource` that every worker loads. By default, the pipeline
            itself is sent to the workers.
        device: "cuda" or "cpu". By default, the device of the pipeline.

    Raises:
        InputError: if the device is unknown.

    >>> RayEngine(model="reference", device="cpu")
    RayEngine(address=None, model='reference', device='cpu')
    """

    address: str | None = None
    model: str | ModelSource | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if self.device not in (None, "cpu", "cuda"):
            raise InputError(f"the device of Ray workers must be cpu or cuda, got {self.device!r}")

    @classmethod
    def connect(
        cls, address: str | None = None, *, model: str | ModelSource | None = None, device: str = "auto"
    ) -> RayEngine:
        """Connect this process to a cluster and return an engine on it.

        Args:
            address: see `RayEngine`.
            model: see `RayEngine`.
            device: "cuda", "cpu" or "auto". "auto" selects cuda if the cluster has GPUs.

        Raises:
            InputError: if the device is unknown, Ray is not installed, or the cluster cannot be reached.
        """
        engine = cls(address, model, None if device == "auto" else device)
        ray = _connect(address)
        gpus = ray.cluster_resources().get("GPU", 0)
        return replace(engine, device=engine.device or ("cuda" if gpus else "cpu"))

    def sample(self, pipeline: Any, manifest: Manifest, take: TakeTask) -> Generator[TaskResult, None, None]:
        """Sample all tasks.

        Raises:
            InputError: if Ray is not installed, the cluster cannot be reached or has no node for a worker, or the
                workers cannot load the model or load another one.
        """
        with connected(self.address) as ray:
            device = self.device or pipeline.device.type
            threads = None if device == "cuda" else torch.get_num_threads()
            requirements = {"num_cpus": threads or 1, "num_gpus": int(device == "cuda")}
            source = absolute_model(self.model) if self.model else _put(ray, pipeline)
            start = ray.remote(**requirements, max_restarts=0)(Worker).remote
            pool = WorkerPool(ray, lambda: start(source, device, threads, manifest), requirements, take)
            yield from pool.run()


def absolute_model(model: str | ModelSource) -> str | ModelSource:
    """Return a folder as absolute path: workers start in another folder."""
    if isinstance(model, ModelSource):
        return replace(model, model=str(absolute_model(model.model)), options=model.options.absolute())
    return str(Path(model).absolute()) if Path(model).exists() else model


def _put(ray: Any, pipeline: Any) -> Any:
    """Copy a pipeline to the object store of the cluster."""
    try:
        return ray.put(pipeline)
    except (TypeError, AttributeError, PicklingError) as error:
        raise InputError(
            f"cannot send this pipeline to the workers ({error}): let them load it with engine=RayEngine(model=...)"
        ) from error


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Connect to a cluster until the context ends. An existing connection is kept."""
    ray = _import_ray()
    was_connected = ray.is_initialized()
    try:
        _connect(address)
        yield ray
    finally:
        if not was_connected:
            ray.shutdown()


def _connect(address: str | None) -> Any:
    """Return the module `ray`, connected to a cluster.

    Raises:
        InputError: if Ray is not installed, or the cluster cannot be reached.
    """
    ray = _import_ray()
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry unless the user enables it
        settings = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
        try:
            # Workers import from the current folder first, which may contain other sources. An interrupted `init`
            # would leave C++ objects that crash the process at exit, and processes that nobody stops.
            with working_folder(Path(__file__).parents[2]), delay_interrupt():
                ray.init(address=address, **settings)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(f"cannot reach a Ray cluster at {address or 'this machine'}: {error}") from error
    return ray


def _import_ray() -> Any:
    with name_missing_extra():
        import ray
    return ray
