"""Deaths of workers and nodes of a Ray cluster."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from benchmarks.faults.trial import Fault, Trial, log
from entropy_probe.attention import find_denoiser
from entropy_probe.errors import IncompleteError
from entropy_probe.runs import RayEngine
from entropy_probe.runs.ray_workers import Worker


@contextlib.contextmanager
def two_nodes() -> Iterator[tuple[Any, list[Any]]]:
    """Start a Ray cluster of two nodes with one worker each; yield functions that add and remove a node."""
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(initialize_head=True, head_node_args=node)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        yield (lambda: cluster.add_node(**node)), cluster.remove_node
    finally:
        ray.shutdown()
        cluster.shutdown()


@contextlib.contextmanager
def after_cells(store: Path, cells: int, action: Callable[[], Any]) -> Iterator[None]:
    """Call `action` in a thread as soon as a run has this number of cells. Raise its error at the end."""

    def watch() -> None:
        while len(list(store.glob("cells/*.parquet"))) < cells:
            time.sleep(0.005)
        action()

    with ThreadPoolExecutor(1) as thread:
        watcher = thread.submit(watch)
        yield
        watcher.result()


def ray_workers() -> list[psutil.Process]:
    """Return the worker processes of Ray, by their command line."""
    workers = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # the process may have ended
            workers += [process] if f"ray::{Worker.__name__}" in " ".join(process.cmdline()) else []
    return workers


def ray_disturbed(
    trial: Trial, folder: Path, name: str, action: Callable[[], Any], restore: Callable[[], Any], times: int
) -> Fault:
    """Run sweeps on a cluster and call `action` during each, after a different number of cells."""
    lost = 0
    for number in range(times):
        store = folder / f"run-{number}"
        with after_cells(store, 1 + number % 6, action), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial.sweep(store, RayEngine())
        restore()
        lost += trial.lost(store)
        log(f"{name}: {number + 1} of {times}, {lost} files lost")
    return Fault(name, times, lost, "another worker samples it; records bit-identical to a run in one process")


def kill_worker_at_small_latents(_: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """Kill this process in a step with small latents; a forward pre-hook."""
    latents = arguments[0] if arguments else keywords["sample"]
    if latents.shape[-1] < 16:
        os.kill(os.getpid(), signal.SIGKILL)


def ray_fatal_cell(trial: Trial, folder: Path) -> Fault:
    """Sample a cell that kills every worker, as one does that needs too much memory; then rerun without the kill."""
    store, count = folder / "run", len(list((trial.reference / "cells").iterdir()))
    hook = find_denoiser(trial.pipeline).register_forward_pre_hook(kill_worker_at_small_latents, with_kwargs=True)
    lost = 1
    try:
        with warnings.catch_warnings(), contextlib.suppress(IncompleteError):
            warnings.simplefilter("ignore")
            trial.sweep(store, RayEngine())
            lost += 1  # IncompleteError was not raised
        lost -= 1
    finally:
        hook.remove()
    done, marked = len(list(store.glob("cells/*"))), len(list(store.glob("failed/*")))
    lost += count - done - marked
    trial.sweep(store)
    lost += trial.lost(store)
    seen = f"exit code 1, the reason in `failed/`; {done} other cells were finished"
    return Fault("Ray: a cell kills every worker", marked, lost, seen)


def on_ray(trial: Trial, folder: Path, times: int) -> Iterator[Fault]:
    """Run every fault of a cluster."""
    with two_nodes() as (add, remove):
        nodes = [add()]

        def kill_worker() -> None:
            ray_workers()[0].kill()

        def kill_node() -> None:
            remove(nodes.pop(), allow_graceful=False)

        for number, fault in enumerate(
            (
                lambda f: ray_disturbed(trial, f, "Ray: a worker killed", kill_worker, lambda: None, times),
                lambda f: ray_disturbed(trial, f, "Ray: a node killed", kill_node, lambda: nodes.append(add()), times),
                lambda f: ray_fatal_cell(trial, f),
            )
        ):
            subfolder = folder / f"ray-{number}"
            subfolder.mkdir()
            yield fault(subfolder)
