"""Sampling on a Ray cluster: the records are those of one process, and neither deaths nor Ctrl-C cost any."""

import os
import signal
import threading
import time
from contextlib import chdir, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from entropy_probe import cli
from entropy_probe.errors import InputError
from entropy_probe.laws import Original
from entropy_probe.sweep import Failed, RayEngine, sweep
from entropy_probe.sweep.engines import PATIENCE, Task, _after_death, _places, _resolved, _Worker

SETTINGS = dict(
    prompts=["noto red apple", "flat pizza"], sizes=[(64, 64), (32, 48)], seeds=range(6), steps=4, guidance_scale=4.0,
    multipliers=(2.0,), progress=False, batch=2, model="tiny",
)  # fmt: skip
CELLS = 24


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A worker takes as many CPUs as torch has threads here, and these nodes have one each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def alone(tiny_pipeline, tmp_path_factory):
    """The grid by this process."""
    return sweep(tiny_pipeline, store=tmp_path_factory.mktemp("alone") / "run", **SETTINGS)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    with chdir(tmp_path_factory.mktemp("away")):  # workers import from where this is, and here lie sources
        made = Cluster(initialize_head=True, connect=True, head_node_args=node)
        second = made.add_node(**node)
    try:
        yield made, second
    finally:
        ray.shutdown()
        made.shutdown()


def contents(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def workers():
    """Processes of workers; Ray names them after what they do."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it may be gone by now
            found += [process] if "_Worker" in " ".join(process.cmdline()) else []
    return found


@contextmanager
def meanwhile(store, *deeds):
    """Do something when there are so many cells, and then something else; say how many there were."""
    seen = []

    def watch():
        for count, deed in deeds:
            while len(list(store.glob("cells/*.parquet"))) < count:
                time.sleep(0.01)
            deed()
            seen.append(len(list(store.glob("cells/*.parquet"))))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    yield seen
    watcher.join(5)


@pytest.mark.slow
def test_a_worker_and_then_a_node_die_and_the_run_is_that_of_one_process(tiny_pipeline, alone, cluster, tmp_path):
    nodes, second = cluster
    deeds = (4, lambda: workers()[0].kill()), (12, lambda: nodes.remove_node(second, allow_graceful=False))
    with meanwhile(tmp_path / "run", *deeds) as seen, pytest.warns(UserWarning, match="a worker died") as told:
        made = sweep(tiny_pipeline, store=tmp_path / "run", engine="ray", **SETTINGS)
    assert len(seen) == 2
    assert max(seen) < CELLS
    assert len(told) >= 1
    assert contents(made.run.path) == contents(alone.run.path)
    assert made.frame().equals(alone.frame())


@pytest.mark.slow
def test_what_goes_wrong_in_a_worker_is_told_as_it_is_here(tiny_pipeline, cluster, tmp_path):
    with pytest.raises(InputError, match=r"^a worker finds another model under the name 'reference'"):
        sweep(tiny_pipeline, store=tmp_path / "run", engine=RayEngine(model="reference"), **SETTINGS)


@pytest.mark.slow
def test_ctrl_c_ends_the_workers_and_keeps_the_cells(tiny_pipeline, tiny_folder, alone, cluster, tmp_path):
    engine = RayEngine(model=str(tiny_folder))
    with (
        meanwhile(tmp_path / "run", (4, lambda: os.kill(os.getpid(), signal.SIGINT))),
        pytest.raises(KeyboardInterrupt),
    ):
        sweep(tiny_pipeline, store=tmp_path / "run", engine=engine, **SETTINGS)
    assert 4 <= len(list((tmp_path / "run" / "cells").glob("*.parquet"))) < CELLS
    assert not list((tmp_path / "run").rglob(".*.lock"))
    until = time.monotonic() + 10
    while workers() and time.monotonic() < until:
        time.sleep(0.1)
    assert workers() == []
    sweep(tiny_pipeline, store=tmp_path / "run", **SETTINGS)
    assert contents(tmp_path / "run") == contents(alone.run.path)


def test_a_worker_that_finds_another_model_refuses(tiny_folder, alone):
    worker = _Worker("reference", "cpu", None, alone.manifest)
    with pytest.raises(InputError, match="another model under the name 'reference'"):
        worker.load()
    worker = _Worker(str(tiny_folder), "cpu", None, alone.manifest)
    worker.load()
    (made,) = worker.sample([next(alone.grid.cells())], Original())
    assert made.cell == next(alone.grid.cells())


def test_a_batch_that_kills_its_workers_is_given_up(alone):
    cells = tuple(alone.grid.cells())[:2]
    task, again = Task(cells, Original()), []
    for deaths in range(1, PATIENCE):
        with pytest.warns(UserWarning, match="a worker died, another one samples its cells: no memory"):
            assert list(_after_death(task, deaths, 2, again, "no memory")) == []
    assert again == [task] * (PATIENCE - 1)
    reason = f"{PATIENCE} workers died over it: no memory"
    assert list(_after_death(task, PATIENCE, 2, again, "no memory")) == [
        (task, [Failed(cell, reason) for cell in cells])
    ]
    with pytest.raises(InputError, match="die while they load the model"):
        list(_after_death(None, 2 * PATIENCE, 2, again, "no memory"))


def test_there_is_a_worker_for_every_gpu_or_for_so_many_cpus():
    nodes = [
        {"Alive": True, "Resources": {"CPU": 16.0, "GPU": 4.0}},
        {"Alive": True, "Resources": {"CPU": 7.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    assert _places(nodes, {"num_cpus": 1, "num_gpus": 1}) == 4
    assert _places(nodes, {"num_cpus": 4, "num_gpus": 0}) == 5
    with pytest.raises(InputError, match=r"has 32 CPUs for a worker: .*set OMP_NUM_THREADS"):
        _places(nodes, {"num_cpus": 32, "num_gpus": 0})
    with pytest.raises(InputError, match="has 1 CPUs and 1 GPUs"):
        _places(nodes[1:], {"num_cpus": 1, "num_gpus": 1})


def test_a_folder_is_named_in_full_and_a_hub_id_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    assert _resolved("model") == str(tmp_path / "model")
    assert [_resolved(name) for name in ("reference", "owner/name")] == ["reference", "owner/name"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "dask"], "engine must be local or ray, not 'dask'"),
        (["--address", "auto"], "add --engine ray"),
        (["--engine", "ray", "--dry-run"], "leave --engine ray out"),
        (["--engine", "ray", "--device", "mps"], "workers sample on cpu or cuda, not on 'mps'"),
    ],
)
def test_what_no_engine_can_do_is_refused(capsys, monkeypatch, options, message):
    for command in ("sweep", "run"):
        monkeypatch.setattr("sys.argv", ["entropy-probe", command, *options])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


def test_an_engine_that_is_not_known_is_refused(tiny_pipeline, tmp_path):
    with pytest.raises(InputError, match="engine must be local or ray, not 'dask'"):
        sweep(tiny_pipeline, store=tmp_path / "run", engine="dask", **SETTINGS)
    assert not (tmp_path / "run").exists()
