"""The grid, the run directory, and what happens when they go wrong."""

import json
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from entropy_probe import models
from entropy_probe.attention import capture
from entropy_probe.errors import InputError
from entropy_probe.laws import Kappa, Original, Paper, apply, remove
from entropy_probe.models import sample_images
from entropy_probe.runs import Grid, RunDirectory, Sweep, extend, forecast, open_location, sweep
from entropy_probe.runs.grid import batches

SETTINGS = dict(
    prompts=["noto red apple", "flat pizza"], sizes=[(64, 64), (32, 48)], seeds=[0], steps=2, guidance_scale=4.0,
    scale_factors=(2.0,), progress=False,
)  # fmt: skip
COLUMNS = [
    "prompt",
    "seed",
    "height",
    "width",
    "law",
    "step",
    "timestep",
    "branch",
    "layer",
    "kind",
    "head",
    "query_tokens",
    "key_tokens",
    "training_tokens",
    "scale",
    "rows",
    "entropy",
    "entropy_std",
    "entropy_se",
    "logit_variance",
    "attention_distance",
]  # of the design, in its order


@pytest.fixture
def run(tiny_pipeline, tmp_path):
    return sweep(tiny_pipeline, store=tmp_path / "run", **SETTINGS)


def times(path):
    return {p.name: p.stat().st_mtime_ns for p in (path / "cells").iterdir()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": ()}, "list of prompts is empty"),
        ({"sizes": ()}, "list of sizes is empty"),
        ({"seeds": (1, 1)}, "seeds holds 1 twice"),
        ({"seeds": (-1,)}, "must not be negative, but one is -1"),
        ({"prompts": ("a", " ")}, "blank"),
        ({"laws": (Paper(), Paper())}, "'paper' twice"),
    ],
)
def test_bad_grids_are_refused(change, message):
    good = {"prompts": ("a",), "sizes": ((64, 64),), "seeds": (0,), "laws": (Original(),)}
    with pytest.raises(InputError, match=message):
        Grid(**{**good, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": "noto red apple"}, r"prompts is a list of texts: give \['noto red apple'\]"),
        ({"sizes": [64]}, r"a size is \(height, width\) in pixels, such as \(64, 64\), not 64"),
        ({"sizes": 64}, r"such as \(64, 64\), not 64"),
        ({"sizes": (64, 64)}, r"such as \(64, 64\), not 64"),
        ({"sizes": ["64"]}, r"such as \(64, 64\), not '64'"),
    ],
)
def test_what_is_no_list_is_refused_before_anything_is_sampled(tiny_pipeline, change, message):
    with pytest.raises(InputError, match=message):
        sweep(tiny_pipeline, **{**SETTINGS, **change})


def test_a_grid_that_was_edited_is_refused_with_its_path(tiny_pipeline, run):
    path = run.run.path / "grid.json"
    text = path.read_text()
    path.write_text("{}")
    with pytest.raises(InputError, match=r"run/grid.json: this is no grid .* it lacks 'prompts'; the same sweep"):
        Sweep.open(run.run.path)
    sweep(tiny_pipeline, store=run.run.path, **SETTINGS)
    assert path.read_text() == text


def test_a_file_is_no_folder_for_a_run(tiny_pipeline, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is a file: choose a folder"):
        sweep(tiny_pipeline, store=tmp_path / "file", **SETTINGS)


def test_laws_of_one_name_are_refused():
    with pytest.raises(InputError, match="both named 'kappa'"):
        Grid(("a",), ((64, 64),), (0,), (Kappa({"a": 0.1}), Kappa({"a": 0.2})))


def test_a_grid_survives_json_and_names_its_cells_apart():
    laws = (Original(), Kappa({"*": 0.1}), Kappa({"*": 0.2}))
    grid = Grid(("a", "b"), ((64, 64), (32, 48)), (0, 1), laws)
    assert Grid.from_json(grid.to_json()) == grid
    assert len({cell.name for cell in grid.cells()}) == len(grid) == 24


@given(st.integers(1, 9), st.integers(1, 9))
def test_batches_hold_one_law_and_size_and_no_more_than_the_limit(prompts, limit):
    grid = Grid(tuple(map(str, range(prompts))), ((64, 64), (128, 64)), (0, 1), (Original(), Paper()))
    cells = list(grid.cells())
    parts = list(batches(cells, limit, (64, 64)))
    assert [cell for part in parts for cell in part] == cells
    for part in parts:
        assert len({(cell.law, cell.size) for cell in part}) == 1
        assert len(part) <= max(1, limit // (part[0].size[0] * part[0].size[1] // 4096))


def test_the_table_is_that_of_a_direct_capture(tiny_pipeline, run):
    frame = run.frame()
    assert [c for c in frame.columns if c in COLUMNS] == COLUMNS
    assert set(run.frame(curves=True)["scale_factor"]) == {1.0, 2.0}
    assert set(frame["scale_factor"]) == {1.0}
    from entropy_probe.models import sample_images

    with capture(tiny_pipeline) as captured:
        images = sample_images(tiny_pipeline, SETTINGS["prompts"], (32, 48), [0, 0], steps=2, guidance_scale=4.0)
    direct = captured.frame().query("sample == 1")
    own = frame[(frame["prompt"] == "flat pizza") & (frame["height"] == 32)]
    assert own["entropy"].tolist() == pytest.approx(direct["entropy"].tolist())
    assert np.array_equal(run.image("flat pizza", (32, 48), 0), images[1])
    with pytest.raises(InputError, match="no cell 'flat pizza', 40"):
        run.image("flat pizza", (40, 40), 0)


def test_a_run_goes_on_where_it_stopped(tiny_pipeline, run):
    before, whole = times(run.run.path), run.frame(curves=True)
    lost = sorted((run.run.path / "cells").iterdir())[0]
    lost.unlink()
    again = sweep(tiny_pipeline, store=run.run.path, **SETTINGS)
    after = times(run.run.path)
    assert {name for name in after if after[name] != before.get(name)} == {lost.name}
    assert again.frame(curves=True).equals(whole)


@pytest.mark.parametrize(
    ("change", "message"), [({"steps": 3}, "steps 2 instead of 3"), ({"scale_factors": ()}, "scale_factors")]
)
def test_another_run_is_not_mixed_in(tiny_pipeline, run, change, message):
    before = times(run.run.path)
    with pytest.raises(InputError, match=message):
        sweep(tiny_pipeline, store=run.run.path, **{**SETTINGS, **change})
    assert times(run.run.path) == before


def test_another_model_version_or_folder_is_refused(tiny_pipeline, tiny_folder, run, tmp_path):
    from entropy_probe.models import load

    other = load(tiny_folder, device="cpu")
    other.unet.conv_in.weight.data += 1
    with pytest.raises(InputError, match="fingerprint"):
        sweep(other, store=run.run.path, **SETTINGS)
    with pytest.raises(InputError, match="another model"):
        Sweep.open(run.run.path, other)
    manifest = json.loads(run.run.manifest_path.read_text())
    run.run.manifest_path.write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(InputError, match="layout 99"):
        Sweep.open(run.run.path)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="neither empty nor a run"):
        sweep(tiny_pipeline, store=foreign, **SETTINGS)
    assert [p.name for p in foreign.iterdir()] == ["thesis.txt"]


def test_a_folder_that_cannot_be_written_is_refused(tiny_pipeline, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*Not a directory"):
        sweep(tiny_pipeline, store=tmp_path / "file" / "run", **SETTINGS)


def test_a_run_is_opened_again_and_extended(tiny_pipeline, run):
    opened = Sweep.open(run.run.path)
    assert opened.frame().equals(run.frame())
    with pytest.raises(InputError, match="needs the model"):
        extend(opened, laws=["paper"])
    more = extend(Sweep.open(run.run.path, tiny_pipeline), laws=["original", "paper"], progress=False)
    assert set(more.frame()["law"]) == {"original", "paper"}
    assert len(Sweep.open(run.run.path).frame()) == len(run.frame())
    sorted((run.run.path / "cells").glob("original*"))[0].unlink()
    with pytest.raises(InputError, match=r"1 of the 4 cells .* missing or damaged"):
        Sweep.open(run.run.path)


def test_a_folder_without_manifest_is_no_run(tmp_path):
    with pytest.raises(InputError, match=r"no manifest\.json"):
        RunDirectory(tmp_path).manifest()


def test_without_a_store_the_run_lives_as_long_as_the_sweep(tiny_pipeline):
    made = sweep(tiny_pipeline, **{**SETTINGS, "sizes": [(32, 32)], "steps": 1})
    path = made.run.path
    assert isinstance(made.image("flat pizza", (32, 32), 0), Image.Image)
    del made
    assert not path.exists()


def test_a_url_without_its_client_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "upath", None)  # as Python sees a package that is not installed
    with pytest.raises(InputError, match=r"s3://b/x needs a client .*: pip install '\.\[remote\]' in the clone"):
        open_location("s3://b/x")


def test_a_forecast_counts_a_shard_and_measures_the_sampling_not_the_fingerprint_of_the_model(
    tiny_pipeline, monkeypatch
):
    """A hash of all weights takes as long as the model is large, and comes once in a run of any length."""
    taken = []

    def noted(pipeline):
        taken.append(pipeline)
        return models.fingerprint(pipeline)

    monkeypatch.setattr(sys.modules["entropy_probe.runs.sweeping"], "fingerprint", noted)
    told = forecast(tiny_pipeline, **{**SETTINGS, "seeds": range(8)}, batch=4, shard=(2, 2))
    assert len(taken) == 1
    assert [one.size for one in told] == [(32, 48), (64, 64)]
    assert [(one.cells, one.batches) for one in told] == [(6, 1), (8, 2)]  # of 10 + 6, and of four times 4
    assert all(one.seconds > 0 and one.bytes > 0 for one in told)


def test_a_forecast_without_memory_names_the_size_and_a_remedy(tiny_pipeline, monkeypatch):
    def full(*_, **__):
        raise MemoryError("no more")

    monkeypatch.setattr(sys.modules["entropy_probe.runs.sampling"], "sample_images", full)
    with pytest.raises(InputError, match=r"^out of memory at 32x48: no more: leave that size out"):
        forecast(tiny_pipeline, **SETTINGS)


@pytest.mark.parametrize("laws", [["original"], ["log"]])
def test_a_pipeline_with_a_law_applied_is_refused_before_anything_is_written(tiny_pipeline, run, tmp_path, laws):
    """Its cells would say `original` of what was sampled under the law."""
    apply(tiny_pipeline, "paper")
    try:
        with pytest.raises(InputError, match=r"the paper law is applied .* take it off with remove\(\) first; .*laws="):
            sweep(tiny_pipeline, store=tmp_path / "other", **SETTINGS | {"laws": laws})
        with pytest.raises(InputError, match="the paper law is applied"):
            extend(run, laws=laws, seeds=[7], progress=False)
        with capture(tiny_pipeline) as captured:  # which says what it saw
            sample_images(tiny_pipeline, ["a"], (32, 48), [0], steps=1, guidance_scale=1.0)
    finally:
        remove(tiny_pipeline)
    assert not (tmp_path / "other").exists()
    frame = captured.frame()
    visual = frame[frame["kind"] == "self"]
    own = (np.log(visual["query_tokens"]) / np.log(visual["training_tokens"])) ** 0.5
    assert np.allclose(visual["scale"], 8**-0.5 * own)  # of a head eight wide
    sweep(tiny_pipeline, store=tmp_path / "other", **SETTINGS | {"laws": laws})
