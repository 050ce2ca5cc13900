"""Sampling on a Ray cluster: the records equal those of one process, also after deaths of workers and Ctrl-C."""

import inspect
import os
import pickle
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import cloudpickle
import psutil
import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from torch.utils.hooks import RemovableHandle

from entropy_probe.cli import main as cli
from entropy_probe.errors import IncompleteError, InputError
from entropy_probe.laws import Original
from entropy_probe.paths import working_folder
from entropy_probe.runs import FailedCell, RayEngine, ray_workers, sweep
from entropy_probe.runs.engines import Task
from entropy_probe.runs.ray_engine import absolute_model, connected
from entropy_probe.runs.ray_workers import (
    MAX_DEATHS,
    NODE_TIMEOUT,
    Assignment,
    Worker,
    check_nodes,
    short_reason,
    worker_count,
)

SETTINGS = dict(
    prompts=["noto red apple", "flat pizza"], sizes=[(64, 64), (32, 48)], seeds=range(6), steps=4, guidance_scale=4.0,
    scale_factors=(2.0,), progress=False, batch=2, model="tiny",
)  # fmt: skip
CELLS = 24


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A worker uses as many CPUs as torch has threads in this process. These nodes have one CPU each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def one_process(tiny_pipeline, tmp_path_factory):
    """The grid, sampled by this process."""
    return sweep(tiny_pipeline, store=tmp_path_factory.mktemp("one") / "run", **SETTINGS)


NODE = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
HEAD = {
    **NODE,
    "num_cpus": 0,
    # The death of a node is detected quickly. Workers get the same share of a core as other tests; the default is 15.
    "_system_config": {"health_check_period_ms": 500, "worker_niceness": 0},
}


@pytest.fixture(scope="module")
def ray_cluster(tmp_path_factory):
    """A head node without resources for workers. This process is connected to it."""
    # Workers import from the current folder first. They must not find the sources there.
    with working_folder(tmp_path_factory.mktemp("empty")):
        # shutdown_at_exit sets a signal handler, which fails in a thread, and a thread adds a node below.
        cluster = Cluster(True, connect=True, shutdown_at_exit=False, head_node_args=HEAD)
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def with_nodes(cluster, count):
    """Add or remove nodes until the cluster has `count`, each with one CPU."""
    for node in list(cluster.worker_nodes)[count:]:
        cluster.remove_node(node)
    while len(cluster.worker_nodes) < count:
        cluster.add_node(num_cpus=1, **NODE)
    return cluster


def doubling():
    """Return a hook that doubles the input of the denoiser. Workers cannot import tests; a nested function is sent."""

    def doubled(_, arguments):
        return arguments[0] * 2, *arguments[1:]

    return doubled


def contents(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def workers():
    """Return the processes of the workers, found by the title that Ray sets."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # the process may have ended
            found += [process] if "ray::Worker" in " ".join(process.cmdline()) else []
    return found


@contextmanager
def meanwhile(store, *actions):
    """Run actions in a thread, each when the run has a given number of cells. Yield the counts after each action."""
    seen = []

    def watch():
        for count, action in actions:
            while len(list(store.glob("cells/*.parquet"))) < count:
                time.sleep(0.01)
            action()
            seen.append(len(list(store.glob("cells/*.parquet"))))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    yield seen
    watcher.join(5)


@pytest.mark.slow
def test_run_is_bit_identical_after_deaths_of_worker_node_and_all_nodes(
    tiny_pipeline, one_process, ray_cluster, tmp_path, monkeypatch
):
    cluster = with_nodes(ray_cluster, 2)
    monkeypatch.setattr(ray_workers, "NODE_TIMEOUT", 60)

    def remove():
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

    def remove_the_last():
        remove()
        while not any("has lost all nodes" in str(warning.message) for warning in warned):
            time.sleep(0.1)
        cluster.add_node(num_cpus=1, **NODE)

    actions = (4, lambda: workers()[0].kill()), (8, remove), (12, remove_the_last)
    with pytest.warns(UserWarning, match="a worker died") as warned, meanwhile(tmp_path / "run", *actions) as seen:
        made = sweep(tiny_pipeline, store=tmp_path / "run", engine="ray", **SETTINGS)
    assert len(seen) == 3
    assert max(seen) < CELLS
    assert contents(made.run.path) == contents(one_process.run.path)
    assert made.frame().equals(one_process.frame())


@pytest.mark.slow
def test_error_in_worker_is_raised_in_this_process(tiny_pipeline, tiny_folder, ray_cluster, tmp_path):
    with_nodes(ray_cluster, 1)
    other = deepcopy(tiny_pipeline)
    next(other.unet.parameters()).data += 1
    with pytest.raises(InputError, match=r"^a worker loaded another model as '.*tiny'"):
        sweep(other, store=tmp_path / "run", engine=RayEngine(model=str(tiny_folder)), **SETTINGS)


@pytest.mark.slow
def test_ctrl_c_stops_workers_and_keeps_cells(tiny_pipeline, tiny_folder, one_process, ray_cluster, tmp_path):
    with_nodes(ray_cluster, 1)
    engine = RayEngine(model=str(tiny_folder))
    with (
        meanwhile(tmp_path / "run", (4, lambda: os.kill(os.getpid(), signal.SIGINT))),
        pytest.raises(KeyboardInterrupt),
    ):
        sweep(tiny_pipeline, store=tmp_path / "run", engine=engine, **SETTINGS)
    assert 4 <= len(list((tmp_path / "run" / "cells").glob("*.parquet"))) < CELLS
    assert not list((tmp_path / "run").rglob(".*.lock"))
    deadline = time.monotonic() + 10
    while workers() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert workers() == []
    sweep(tiny_pipeline, store=tmp_path / "run", **SETTINGS)
    assert contents(tmp_path / "run") == contents(one_process.run.path)


@pytest.mark.slow
def test_cell_that_kills_workers_fails_and_its_neighbour_is_bit_identical(
    tiny_pipeline, ray_cluster, tmp_path, monkeypatch
):
    with_nodes(ray_cluster, 1)
    monkeypatch.setattr(ray_workers, "MAX_DEATHS", 1)
    monkeypatch.setattr(RemovableHandle, "next_id", 0)  # the ids that hooks of a worker could replace
    pipeline, (good, deadly) = deepcopy(tiny_pipeline), SETTINGS["prompts"]
    pipeline.unet.register_forward_pre_hook(doubling())
    here = sweep(pipeline, store=tmp_path / "here", **SETTINGS | {"prompts": [good], "seeds": [0], "batch": 1})
    token = pipeline.tokenizer(deadly).input_ids[1]

    def kill(_, arguments):
        if (arguments[0] == token).any():
            os.kill(os.getpid(), signal.SIGKILL)

    pipeline.text_encoder.register_forward_pre_hook(kill)
    settings = SETTINGS | {"sizes": [(64, 64)], "seeds": [0]}
    with (
        pytest.warns(UserWarning, match="a worker died; another worker samples its cells: The actor"),
        pytest.raises(
            IncompleteError, match="1 of 2 cells failed, the first with: 2 workers died while sampling it: The actor"
        ),
    ):
        sweep(pipeline, store=tmp_path / "run", engine="ray", **settings)
    (cell,) = (tmp_path / "run" / "cells").glob("*.parquet")
    assert cell.read_bytes() == (here.run.path / "cells" / cell.name).read_bytes()
    (failed,) = (tmp_path / "run" / "failed").iterdir()
    assert "2 workers died while sampling it: The actor" in failed.read_text()


@pytest.mark.slow
def test_node_without_package_is_reported_with_the_missing_module(
    tiny_pipeline, tiny_folder, ray_cluster, tmp_path, monkeypatch
):
    with_nodes(ray_cluster, 0)
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'entropy_probe':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}')\n"
        "sys.meta_path.insert(0, Hidden())\n"
    )
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        with_nodes(ray_cluster, 1)
    with (
        pytest.warns(UserWarning, match="a worker died while loading the model"),
        pytest.raises(InputError) as error,
    ):
        sweep(tiny_pipeline, store=tmp_path / "run", engine=RayEngine(model=str(tiny_folder)), **SETTINGS)
    with_nodes(ray_cluster, 0)
    assert str(error.value).startswith("the workers die while loading the model: ")
    assert "ModuleNotFoundError: No module named 'entropy_probe'" in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400


@pytest.mark.slow
def test_ctrl_c_is_delayed_until_ray_has_started(ray_cluster):
    def interrupted(work):
        def interrupt(frame, event, _):
            if event == "call" and frame.f_code is inspect.unwrap(ray._private.worker.connect).__code__:
                sys.setprofile(None)
                os.kill(os.getpid(), signal.SIGINT)

        ray.shutdown()
        sys.setprofile(interrupt)
        with pytest.raises(KeyboardInterrupt):
            work()

    def sampled():
        with connected(ray_cluster.address):
            raise AssertionError

    interrupted(sampled)
    assert not ray.is_initialized()
    interrupted(lambda: RayEngine.connect(ray_cluster.address))
    assert ray.is_initialized()


def test_worker_rejects_other_model(tiny_folder, one_process):
    worker = Worker(str(tiny_folder), "cpu", None, replace(one_process.manifest, fingerprint="another"))
    with pytest.raises(InputError, match=r"loaded another model as '.*tiny'"):
        worker.load()
    worker = Worker(str(tiny_folder), "cpu", None, one_process.manifest)
    worker.load()
    (made,) = worker.sample([next(one_process.grid.cells())], Original())
    assert made.cell == next(one_process.grid.cells())


def test_hooks_of_received_pipeline_are_kept(tiny_pipeline, one_process, monkeypatch):
    """Torch numbers hooks from 0 in every process."""
    monkeypatch.setattr(RemovableHandle, "next_id", 0)
    pipeline, cell = deepcopy(tiny_pipeline), next(one_process.grid.cells())
    pipeline.unet.register_forward_pre_hook(doubling())
    pipeline.vae.decoder.register_forward_hook(lambda *_: None)

    def sample(pipeline):
        worker = Worker(pipeline, "cpu", None, one_process.manifest)
        worker.load()
        return worker.sample([cell], Original())[0].frame

    here, sent = sample(pipeline), cloudpickle.dumps(pipeline)
    monkeypatch.setattr(RemovableHandle, "next_id", 0)
    pipeline = pickle.loads(sent)
    assert sample(pipeline).equals(here)
    assert not sample(tiny_pipeline).equals(here)
    assert list(pipeline.unet._forward_pre_hooks) == [0]
    assert list(pipeline.vae.decoder._forward_hooks) == [1]


def test_batch_that_kills_workers_is_halved_until_the_cell_is_found(one_process):
    cells = tuple(one_process.grid.cells())[:5]
    part = Assignment(Task(cells, Original()), cells)
    for _ in range(1, MAX_DEATHS):
        with pytest.warns(UserWarning, match="a worker died; another worker samples its cells: no memory"):
            (part,), failed = part.after_death("no memory")
        assert (part.cells, failed) == (cells, [])
    deaths, lengths = MAX_DEATHS, []
    while not failed:
        with pytest.warns(UserWarning, match="a worker died"):
            halves, failed = part.after_death("no memory")
        assert sum((half.cells for half in reversed(halves)), ()) == part.cells
        assert {half.deaths for half in halves} == {deaths}
        lengths.append([len(half.cells) for half in halves])
        part, deaths = halves[0], deaths + 1
        if len(part.cells) == 1:
            halves, failed = part.after_death("no memory")
    assert lengths == [[3, 2], [2, 1], [1, 1]]
    assert (halves, failed) == (
        [],
        [FailedCell(cells[4], f"{MAX_DEATHS + 3} workers died while sampling it: no memory")],
    )


def test_reason_of_death_is_one_line_without_traceback():
    traceback = (
        "The actor died because of an error in its creation task, \x1b[36mray::_Worker.__init__()\x1b[39m (pid=1)\n"
        '  File "x.py", line 1, in <module>\n    import entropy_probe\n'
        "\x1b[31mModuleNotFoundError\x1b[39m: No module named 'entropy_probe'\nand more"
    )
    assert short_reason(RuntimeError(traceback)) == "ModuleNotFoundError: No module named 'entropy_probe' and more"
    assert short_reason(RuntimeError("died\n\tpid: 7\n\tip: 1.2.3.4\nThe actor is dead")) == "The actor is dead"
    assert short_reason(RuntimeError("\x1b[31mno memory\x1b[39m\n  left\n")) == "no memory left"
    assert short_reason(RuntimeError()) == ""
    assert len(short_reason(RuntimeError("word " * 1000))) <= 300


def test_sweep_without_nodes_waits_then_fails():
    needs = {"num_cpus": 1, "num_gpus": 1}
    one = [{"Alive": True, "Resources": {"CPU": 16.0, "GPU": 4.0}}]
    none = [{"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}, {"Alive": True, "Resources": {"CPU": 4.0}}]
    assert check_nodes(one, needs, None) is None
    with pytest.warns(UserWarning, match="has lost all nodes with 1 CPU and 1 GPU for a worker. .* waits 10 minutes"):
        lost_at = check_nodes(none, needs, None)
    assert check_nodes(none, needs, lost_at) == lost_at
    assert check_nodes(one, needs, lost_at - NODE_TIMEOUT) is None
    with pytest.raises(InputError, match=r"no new one joined in 10 minutes. Finished cells are kept: add a node"):
        check_nodes(none, needs, lost_at - NODE_TIMEOUT)


def test_worker_count_follows_gpus_and_cpus():
    nodes = [
        {"Alive": True, "Resources": {"CPU": 16.0, "GPU": 4.0}},
        {"Alive": True, "Resources": {"CPU": 7.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    assert worker_count(nodes, {"num_cpus": 1, "num_gpus": 1}) == 4
    assert worker_count(nodes, {"num_cpus": 4, "num_gpus": 0}) == 5
    with pytest.raises(InputError, match=r"has 32 CPUs for a worker: .*set OMP_NUM_THREADS"):
        worker_count(nodes, {"num_cpus": 32, "num_gpus": 0})
    with pytest.raises(InputError, match="has 1 CPU and 1 GPU "):
        worker_count(nodes[1:], {"num_cpus": 1, "num_gpus": 1})


def test_folder_is_made_absolute_and_hub_id_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    assert absolute_model("model") == str(tmp_path / "model")
    assert [absolute_model(name) for name in ("reference", "owner/name")] == ["reference", "owner/name"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "dask"], "engine must be local or ray, got 'dask'"),
        (["--address", "auto"], "add --engine ray"),
        (["--engine", "ray", "--dry-run"], "run it without --engine ray"),
        (["--engine", "ray", "--device", "mps"], "the device of Ray workers must be cpu or cuda, got 'mps'"),
    ],
)
def test_command_line_rejects_options_that_no_engine_supports(capsys, monkeypatch, options, message):
    for command in ("sweep", "run"):
        monkeypatch.setattr("sys.argv", ["entropy-probe", command, *options])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


def test_sweep_rejects_unknown_engine(tiny_pipeline, tmp_path):
    with pytest.raises(InputError, match="engine must be local or ray, got 'dask'"):
        sweep(tiny_pipeline, store=tmp_path / "run", engine="dask", **SETTINGS)
    assert not (tmp_path / "run").exists()
