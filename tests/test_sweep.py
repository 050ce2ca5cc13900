"""Sweeps: the grid, the table, resuming, extending, forecasts, and errors."""

import json
import warnings

import numpy as np
import pytest
import upath
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from entropy_probe import models
from entropy_probe.attention import capture
from entropy_probe.errors import InputError
from entropy_probe.laws import Kappa, Original, Paper, apply, remove
from entropy_probe.models import SamplingSettings, defaults, load, sample_images
from entropy_probe.runs import (
    Grid,
    RunDirectory,
    Sweep,
    extend,
    forecast,
    open_location,
    sampling,
    sweep,
    sweeping,
)
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
]  # in the order of the design


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
        ({"seeds": (1, 1)}, "seeds contains 1 twice"),
        ({"seeds": (-1,)}, "must not be negative, got -1"),
        ({"prompts": ("a", " ")}, "blank"),
        ({"laws": (Paper(), Paper())}, "'paper' twice"),
    ],
)
def test_grid_rejects_invalid_lists(change, message):
    good = {"prompts": ("a",), "sizes": ((64, 64),), "seeds": (0,), "laws": (Original(),)}
    with pytest.raises(InputError, match=message):
        Grid(**{**good, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": "noto red apple"}, r"prompts must be a list of texts: use \['noto red apple'\]"),
        ({"sizes": [64]}, r"a size must be \(height, width\) in pixels, such as \(64, 64\), got 64"),
        ({"sizes": 64}, r"such as \(64, 64\), got 64"),
        ({"sizes": (64, 64)}, r"such as \(64, 64\), got 64"),
        ({"sizes": ["64"]}, r"such as \(64, 64\), got '64'"),
    ],
)
def test_sweep_rejects_arguments_that_are_not_lists(tiny_pipeline, change, message):
    with pytest.raises(InputError, match=message):
        sweep(tiny_pipeline, **{**SETTINGS, **change})


def test_edited_grid_is_rejected_and_written_again(tiny_pipeline, run):
    path = run.run.path / "grid.json"
    text = path.read_text()
    path.write_text("{}")
    with pytest.raises(
        InputError, match=r"run/grid.json: not a valid grid: the field 'prompts' is missing. Rerun the same"
    ):
        Sweep.open(run.run.path)
    sweep(tiny_pipeline, store=run.run.path, **SETTINGS)
    assert path.read_text() == text


def test_sweep_rejects_file_as_store(tiny_pipeline, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is a file: choose a folder"):
        sweep(tiny_pipeline, store=tmp_path / "file", **SETTINGS)


def test_grid_rejects_two_laws_with_same_name():
    with pytest.raises(InputError, match="same name 'kappa'"):
        Grid(("a",), ((64, 64),), (0,), (Kappa({"a": 0.1}), Kappa({"a": 0.2})))


def test_grid_json_roundtrip_and_unique_cell_names():
    laws = (Original(), Kappa({"*": 0.1}), Kappa({"*": 0.2}))
    grid = Grid(("a", "b"), ((64, 64), (32, 48)), (0, 1), laws)
    assert Grid.from_json(grid.to_json()) == grid
    assert len({cell.name for cell in grid.cells()}) == len(grid) == 24


@given(st.integers(1, 9), st.integers(1, 9))
def test_batches_have_one_law_one_size_and_limited_length(prompts, limit):
    grid = Grid(tuple(map(str, range(prompts))), ((64, 64), (128, 64)), (0, 1), (Original(), Paper()))
    cells = list(grid.cells())
    parts = list(batches(cells, limit, (64, 64)))
    assert [cell for part in parts for cell in part] == cells
    for part in parts:
        assert len({(cell.law, cell.size) for cell in part}) == 1
        assert len(part) <= max(1, limit // (part[0].size[0] * part[0].size[1] // 4096))


def test_table_equals_direct_capture(tiny_pipeline, run):
    frame = run.frame()
    assert [c for c in frame.columns if c in COLUMNS] == COLUMNS
    assert set(run.frame(curves=True)["scale_factor"]) == {1.0, 2.0}
    assert set(frame["scale_factor"]) == {1.0}
    with capture(tiny_pipeline) as captured:
        images = sample_images(tiny_pipeline, SETTINGS["prompts"], (32, 48), [0, 0], steps=2, guidance_scale=4.0)
    direct = captured.frame().query("sample == 1")
    rows = frame[(frame["prompt"] == "flat pizza") & (frame["height"] == 32)]
    assert rows["entropy"].tolist() == pytest.approx(direct["entropy"].tolist())
    assert np.array_equal(run.image("flat pizza", (32, 48), 0), images[1])
    with pytest.raises(InputError, match="no cell 'flat pizza', 40"):
        run.image("flat pizza", (40, 40), 0)


def test_sweep_resumes_and_samples_only_missing_cells(tiny_pipeline, run):
    before, frame = times(run.run.path), run.frame(curves=True)
    lost = sorted((run.run.path / "cells").iterdir())[0]
    lost.unlink()
    again = sweep(tiny_pipeline, store=run.run.path, **SETTINGS)
    after = times(run.run.path)
    assert {name for name in after if after[name] != before.get(name)} == {lost.name}
    assert again.frame(curves=True).equals(frame)


@pytest.mark.parametrize(
    ("change", "message"), [({"steps": 3}, "steps 2 instead of 3"), ({"scale_factors": ()}, "scale_factors")]
)
def test_sweep_rejects_store_with_other_settings(tiny_pipeline, run, change, message):
    before = times(run.run.path)
    with pytest.raises(InputError, match=message):
        sweep(tiny_pipeline, store=run.run.path, **{**SETTINGS, **change})
    assert times(run.run.path) == before


def test_rejects_other_model_other_format_and_foreign_folder(tiny_pipeline, tiny_folder, run, tmp_path):
    other = load(tiny_folder, device="cpu")
    other.unet.conv_in.weight.data += 1
    with pytest.raises(InputError, match="fingerprint"):
        sweep(other, store=run.run.path, **SETTINGS)
    with pytest.raises(InputError, match="another model"):
        Sweep.open(run.run.path, other)
    manifest = json.loads(run.run.manifest_path.read_text())
    run.run.manifest_path.write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(InputError, match="got format 99"):
        Sweep.open(run.run.path)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="neither empty nor a run directory"):
        sweep(tiny_pipeline, store=foreign, **SETTINGS)
    assert [p.name for p in foreign.iterdir()] == ["thesis.txt"]


def test_sweep_reports_folder_that_cannot_be_created(tiny_pipeline, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*Not a directory"):
        sweep(tiny_pipeline, store=tmp_path / "file" / "run", **SETTINGS)


def test_opened_run_can_be_extended(tiny_pipeline, run):
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


def test_folder_without_manifest_is_rejected(tmp_path):
    with pytest.raises(InputError, match=r"no manifest\.json"):
        RunDirectory(tmp_path).manifest()


def test_temporary_run_is_deleted_with_its_sweep(tiny_pipeline):
    made = sweep(tiny_pipeline, **{**SETTINGS, "sizes": [(32, 32)], "steps": 1})
    path = made.run.path
    assert isinstance(made.image("flat pizza", (32, 32), 0), Image.Image)
    del made
    assert not path.exists()


def test_url_without_client_names_command_to_install_it(monkeypatch):
    def missing(*_, **__):
        raise ImportError("No module named 's3fs'")

    monkeypatch.setattr(upath, "UPath", missing)
    with pytest.raises(InputError, match=r's3://b/x needs a client .*: pip install "entropy-probe\[remote\]"$'):
        open_location("s3://b/x")


def test_forecast_counts_cells_of_shard_and_computes_fingerprint_once(tiny_pipeline, monkeypatch):
    """The fingerprint hashes all weights. A run computes it once, so it must not count as time per cell."""
    calls = []

    def counted(pipeline, *version):
        calls.append(pipeline)
        return models.fingerprint(pipeline, *version)

    monkeypatch.setattr(sweeping, "fingerprint", counted)
    forecasts = forecast(tiny_pipeline, **{**SETTINGS, "seeds": range(8)}, batch=4, shard=(2, 2))
    assert len(calls) == 1
    assert [one.size for one in forecasts] == [(32, 48), (64, 64)]
    assert [(one.cells, one.batches) for one in forecasts] == [(6, 1), (8, 2)]  # of 10 + 6, and of four times 4
    assert all(one.seconds > 0 and one.bytes > 0 for one in forecasts)


def test_forecast_out_of_memory_names_size_and_fix(tiny_pipeline, monkeypatch):
    def out_of_memory(*_, **__):
        raise MemoryError("no more")

    monkeypatch.setattr(sampling, "sample_clips", out_of_memory)
    with pytest.raises(InputError, match=r"^out of memory at 32x48: no more. Remove this size"):
        forecast(tiny_pipeline, **SETTINGS)


@pytest.mark.parametrize("laws", [["original"], ["log"]])
def test_sweep_rejects_pipeline_with_applied_law_and_writes_nothing(tiny_pipeline, run, tmp_path, laws):
    """Otherwise images sampled under the law would be labelled `original`."""
    apply(tiny_pipeline, "paper")
    try:
        with pytest.raises(InputError, match=r"the paper law is applied .* remove it first, with remove\(\)\. .*laws="):
            sweep(tiny_pipeline, store=tmp_path / "other", **SETTINGS | {"laws": laws})
        with pytest.raises(InputError, match="the paper law is applied"):
            extend(run, laws=laws, seeds=[7], progress=False)
        with capture(tiny_pipeline) as captured:  # it reports the scaled softmax scale
            sample_images(tiny_pipeline, ["a"], (32, 48), [0], steps=1, guidance_scale=1.0)
    finally:
        remove(tiny_pipeline)
    assert not (tmp_path / "other").exists()
    frame = captured.frame()
    visual = frame[frame["kind"] == "self"]
    factor = (np.log(visual["query_tokens"]) / np.log(visual["training_tokens"])) ** 0.5
    assert np.allclose(visual["scale"], 8**-0.5 * factor)  # the head dimension is 8
    sweep(tiny_pipeline, store=tmp_path / "other", **SETTINGS | {"laws": laws})


def test_steps_and_guidance_scale_default_to_the_settings_of_the_model(tiny_pipeline, monkeypatch):
    monkeypatch.setattr(defaults, "sampling_defaults", lambda pipeline: SamplingSettings(3, 2.5))
    settings = {"prompts": ["noto red apple"], "sizes": [(32, 32)], "scale_factors": (), "progress": False}
    manifest = sweep(tiny_pipeline, **settings).manifest
    assert (manifest.steps, manifest.guidance_scale) == (3, 2.5)
    manifest = sweep(tiny_pipeline, **settings, steps=1, guidance_scale=1.0).manifest
    assert (manifest.steps, manifest.guidance_scale) == (1, 1.0)


def test_old_name_of_scale_factors_works_with_a_warning(tiny_pipeline):
    settings = {"prompts": ["noto red apple"], "sizes": [(32, 32)], "steps": 1, "progress": False}
    with pytest.warns(DeprecationWarning, match=r"sweep\(multipliers=...\) is deprecated: use scale_factors=..."):
        made = sweep(tiny_pipeline, **settings, multipliers=(2.0,))
    assert made.manifest.scale_factors == (2.0,)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        assert sweep(tiny_pipeline, **settings, scale_factors=(2.0,)).frame().equals(made.frame())
