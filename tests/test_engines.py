"""Sampling on a Ray cluster: the records are those of one process, and neither deaths nor Ctrl-C cost any."""

import inspect
import os
import pickle
import signal
import sys
import threading
import time
from contextlib import chdir, contextmanager, suppress
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
from entropy_probe.runs import FailedCell, RayEngine, engines, sweep
from entropy_probe.runs.engines import (
    ABSENCE,
    PATIENCE,
    Task,
    _connected,
    _Part,
    _places,
    _reason,
    _resolved,
    _without_nodes,
    _Worker,
)

SETTINGS = dict(
    prompts=["noto red apple", "flat pizza"], sizes=[(64, 64), (32, 48)], seeds=range(6), steps=4, guidance_scale=4.0,
    scale_factors=(2.0,), progress=False, batch=2, model="tiny",
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


NODE = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
HEAD = {**NODE, "num_cpus": 0, "_system_config": {"health_check_period_ms": 500}}  # the death of a node is soon seen


@pytest.fixture(scope="module")
def ray_cluster(tmp_path_factory):
    """A head, which this process is connected to, without room for workers."""
    with chdir(tmp_path_factory.mktemp("away")):  # workers import from where this is, and here lie sources
        # What ends it at exit is a handler of signals, which a thread, that may add a node, cannot set.
        made = Cluster(True, connect=True, shutdown_at_exit=False, head_node_args=HEAD)
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def with_nodes(cluster, count):
    """The cluster, with so many nodes for one worker each."""
    for node in list(cluster.worker_nodes)[count:]:
        cluster.remove_node(node)
    while len(cluster.worker_nodes) < count:
        cluster.add_node(num_cpus=1, **NODE)
    return cluster


def doubling():
    """A hook that changes what the denoiser gets; workers have no tests, and are sent a function within a function."""

    def doubled(_, arguments):
        return arguments[0] * 2, *arguments[1:]

    return doubled


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
def test_a_worker_a_node_and_all_nodes_die_and_the_run_is_that_of_one_process(
    tiny_pipeline, alone, ray_cluster, tmp_path, monkeypatch
):
    cluster = with_nodes(ray_cluster, 2)
    monkeypatch.setattr(engines, "ABSENCE", 60)

    def remove():
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

    def remove_the_last():
        remove()
        while not any("has lost all nodes" in str(warning.message) for warning in told):
            time.sleep(0.1)
        cluster.add_node(num_cpus=1, **NODE)

    deeds = (4, lambda: workers()[0].kill()), (8, remove), (12, remove_the_last)
    with pytest.warns(UserWarning, match="a worker died") as told, meanwhile(tmp_path / "run", *deeds) as seen:
        made = sweep(tiny_pipeline, store=tmp_path / "run", engine="ray", **SETTINGS)
    assert len(seen) == 3
    assert max(seen) < CELLS
    assert contents(made.run.path) == contents(alone.run.path)
    assert made.frame().equals(alone.frame())


@pytest.mark.slow
def test_what_goes_wrong_in_a_worker_is_told_as_it_is_here(tiny_pipeline, tiny_folder, ray_cluster, tmp_path):
    with_nodes(ray_cluster, 1)
    other = deepcopy(tiny_pipeline)
    next(other.unet.parameters()).data += 1
    with pytest.raises(InputError, match=r"^a worker finds another model under the name '.*tiny'"):
        sweep(other, store=tmp_path / "run", engine=RayEngine(model=str(tiny_folder)), **SETTINGS)


@pytest.mark.slow
def test_ctrl_c_ends_the_workers_and_keeps_the_cells(tiny_pipeline, tiny_folder, alone, ray_cluster, tmp_path):
    with_nodes(ray_cluster, 1)
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


@pytest.mark.slow
def test_a_cell_that_kills_its_worker_is_given_up_and_the_one_beside_it_is_done_as_here(
    tiny_pipeline, ray_cluster, tmp_path, monkeypatch
):
    with_nodes(ray_cluster, 1)
    monkeypatch.setattr(engines, "PATIENCE", 1)
    monkeypatch.setattr(RemovableHandle, "next_id", 0)  # the first hooks are the ones that a worker's could replace
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
        pytest.warns(UserWarning, match="a worker died, another one samples its cells: The actor"),
        pytest.raises(IncompleteError, match="1 of 2 cells failed, the first 2 workers died over it: The actor"),
    ):
        sweep(pipeline, store=tmp_path / "run", engine="ray", **settings)
    (cell,) = (tmp_path / "run" / "cells").glob("*.parquet")
    assert cell.read_bytes() == (here.run.path / "cells" / cell.name).read_bytes()
    (failed,) = (tmp_path / "run" / "failed").iterdir()
    assert "2 workers died over it: The actor" in failed.read_text()


@pytest.mark.slow
def test_a_node_without_the_package_is_told_from_what_is_missing(
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
        pytest.warns(UserWarning, match="a worker died while it loaded the model"),
        pytest.raises(InputError) as told,
    ):
        sweep(tiny_pipeline, store=tmp_path / "run", engine=RayEngine(model=str(tiny_folder)), **SETTINGS)
    with_nodes(ray_cluster, 0)
    assert str(told.value).startswith("the workers die while they load the model: ")
    assert "ModuleNotFoundError: No module named 'entropy_probe'" in str(told.value)
    assert str(told.value).isprintable()
    assert len(str(told.value)) < 400


@pytest.mark.slow
def test_ctrl_c_waits_until_ray_has_started(ray_cluster):
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
        with _connected(ray_cluster.address):
            raise AssertionError

    interrupted(sampled)
    assert not ray.is_initialized()
    interrupted(lambda: RayEngine.connect(ray_cluster.address))
    assert ray.is_initialized()


def test_a_worker_that_finds_another_model_refuses(tiny_folder, alone):
    worker = _Worker(str(tiny_folder), "cpu", None, replace(alone.manifest, fingerprint="another"))
    with pytest.raises(InputError, match=r"another model under the name '.*tiny'"):
        worker.load()
    worker = _Worker(str(tiny_folder), "cpu", None, alone.manifest)
    worker.load()
    (made,) = worker.sample([next(alone.grid.cells())], Original())
    assert made.cell == next(alone.grid.cells())


def test_hooks_of_a_pipeline_from_another_process_stay(tiny_pipeline, alone, monkeypatch):
    """Torch counts hooks from 0 in every process."""
    monkeypatch.setattr(RemovableHandle, "next_id", 0)
    pipeline, cell = deepcopy(tiny_pipeline), next(alone.grid.cells())
    pipeline.unet.register_forward_pre_hook(doubling())
    pipeline.vae.decoder.register_forward_hook(lambda *_: None)

    def sample(pipeline):
        worker = _Worker(pipeline, "cpu", None, alone.manifest)
        worker.load()
        return worker.sample([cell], Original())[0].frame

    here, sent = sample(pipeline), cloudpickle.dumps(pipeline)
    monkeypatch.setattr(RemovableHandle, "next_id", 0)
    pipeline = pickle.loads(sent)
    assert sample(pipeline).equals(here)
    assert not sample(tiny_pipeline).equals(here)
    assert list(pipeline.unet._forward_pre_hooks) == [0]
    assert list(pipeline.vae.decoder._forward_hooks) == [1]


def test_a_batch_that_kills_its_workers_is_halved_until_the_deadly_cell_is_found(alone):
    cells = tuple(alone.grid.cells())[:5]
    part = _Part(Task(cells, Original()), cells)
    for _ in range(1, PATIENCE):
        with pytest.warns(UserWarning, match="a worker died, another one samples its cells: no memory"):
            (part,), failed = part.after_death("no memory")
        assert (part.cells, failed) == (cells, [])
    deaths, found = PATIENCE, []
    while not failed:
        with pytest.warns(UserWarning, match="a worker died"):
            halves, failed = part.after_death("no memory")
        assert sum((half.cells for half in reversed(halves)), ()) == part.cells
        assert {half.deaths for half in halves} == {deaths}
        found.append([len(half.cells) for half in halves])
        part, deaths = halves[0], deaths + 1
        if len(part.cells) == 1:
            halves, failed = part.after_death("no memory")
    assert found == [[3, 2], [2, 1], [1, 1]]
    assert (halves, failed) == ([], [FailedCell(cells[4], f"{PATIENCE + 3} workers died over it: no memory")])


def test_what_a_worker_died_of_is_one_line_without_its_traceback():
    traceback = (
        "The actor died because of an error in its creation task, \x1b[36mray::_Worker.__init__()\x1b[39m (pid=1)\n"
        '  File "x.py", line 1, in <module>\n    import entropy_probe\n'
        "\x1b[31mModuleNotFoundError\x1b[39m: No module named 'entropy_probe'\nand more"
    )
    assert _reason(RuntimeError(traceback)) == "ModuleNotFoundError: No module named 'entropy_probe' and more"
    assert _reason(RuntimeError("died\n\tpid: 7\n\tip: 1.2.3.4\nThe actor is dead")) == "The actor is dead"
    assert _reason(RuntimeError("\x1b[31mno memory\x1b[39m\n  left\n")) == "no memory left"
    assert _reason(RuntimeError()) == ""
    assert len(_reason(RuntimeError("word " * 1000))) <= 300


def test_without_nodes_a_sweep_waits_and_then_gives_up():
    needs = {"num_cpus": 1, "num_gpus": 1}
    one = [{"Alive": True, "Resources": {"CPU": 16.0, "GPU": 4.0}}]
    none = [{"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}, {"Alive": True, "Resources": {"CPU": 4.0}}]
    assert _without_nodes(one, needs, None) is None
    with pytest.warns(UserWarning, match="has lost all nodes with 1 CPUs and 1 GPUs for a worker; .* waits 10 minutes"):
        since = _without_nodes(none, needs, None)
    assert _without_nodes(none, needs, since) == since
    assert _without_nodes(one, needs, since - ABSENCE) is None
    with pytest.raises(InputError, match="got none in 10 minutes: what is sampled is kept; add a node"):
        _without_nodes(none, needs, since - ABSENCE)


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
        (["--engine", "dask"], "engine must be local or ray, got 'dask'"),
        (["--address", "auto"], "add --engine ray"),
        (["--engine", "ray", "--dry-run"], "run it without --engine ray"),
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
