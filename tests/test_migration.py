"""Run directories of entropy-probe 0.1.0 can be read, resumed and extended."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from entropy_probe.errors import InputError
from entropy_probe.estimation import fit
from entropy_probe.evaluation import Outcome
from entropy_probe.laws import Measured, resolve
from entropy_probe.runs import Manifest, Sweep, directory, extend, sweep, sweeping
from entropy_probe.runs.cells import COLUMNS, SCHEMA

OLD_RUN = Path(__file__).parent / "fixtures" / "run-0.1.0"
SETTINGS = dict(
    prompts=["noto red apple"], sizes=[(32, 32), (64, 64)], seeds=[0], steps=1, guidance_scale=4.0, progress=False
)  # fmt: skip


@pytest.fixture
def old_run(tmp_path):
    return shutil.copytree(OLD_RUN, tmp_path / "run")


@pytest.fixture
def same_model(monkeypatch):
    """Make the tiny pipeline pass for the model of the fixture, which takes longer to sample."""
    fingerprint = json.loads((OLD_RUN / "manifest.json").read_text())["fingerprint"]
    monkeypatch.setattr(sweeping, "fingerprint", lambda pipeline, version=1: fingerprint)


def contents(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def original_cells(path):
    return sorted((path / "cells").glob("original_*.parquet"))


def test_old_run_is_read_and_not_changed(old_run):
    before = contents(old_run)
    opened = Sweep.open(old_run)
    frame = opened.frame(curves=True)
    assert (len(frame), len(opened.frame())) == (1664, 416)
    assert list(frame.columns) == [column.name for column in COLUMNS]
    assert set(frame["scale_factor"]) == {0.2, 0.4, 0.65, 1.0, 1.5, 2.3, 4.0}
    assert opened.frame()["entropy"].mean() == pytest.approx(2.6574945)
    assert opened.image("noto red apple", (64, 64), 0).size == (64, 64)
    assert opened.manifest.scale_factors == (0.2, 0.4, 0.65, 1.5, 2.3, 4.0)
    assert contents(old_run) == before


def test_values_of_old_cells_are_unchanged(old_run):
    cell = next(Sweep.open(old_run).grid.cells())
    old = pd.read_parquet(old_run / "cells" / f"{cell.name}.parquet").rename(columns={"multiplier": "scale_factor"})
    pd.testing.assert_frame_equal(Sweep.open(old_run).run.read([cell]), old)


def test_fit_law_and_outcome_of_old_run_are_read(old_run):
    opened = Sweep.open(old_run)
    slope = fit(opened).table().set_index("layer")["slope"]
    recorded = {layer["layer"]: layer["slope"] for layer in json.loads((old_run / "fit.json").read_text())["layers"]}
    assert slope[list(recorded)].tolist() == pytest.approx(list(recorded.values()))
    law = resolve(old_run / "law.json")
    assert isinstance(law, Measured)
    outcome = Outcome.from_json(opened, (old_run / "outcome.json").read_text())
    assert set(outcome.sweep.frame()["law"]) == {
        "original",
        "measured",
    }  # the name of a cell contains a hash of its law
    assert outcome.drifts[1].drift == pytest.approx(0.320871491091592)


@pytest.mark.parametrize("laws", [["original"], ["original", "paper"]])
def test_old_run_is_resumed_in_the_current_format(tiny_pipeline, old_run, same_model, laws):
    manifest = json.loads((old_run / "manifest.json").read_text())
    (old_run / "manifest.json").write_text(json.dumps({**manifest, "hardware": "another CPU"}))
    before, images = Sweep.open(old_run).frame(curves=True), contents(old_run / "images")
    with pytest.warns(UserWarning, match=r"was started with .*another CPU"):
        made = sweep(tiny_pipeline, store=old_run, **SETTINGS, laws=laws)
    assert Sweep.open(old_run).manifest.format == 4
    assert json.loads((old_run / "manifest.json").read_text())["format"] == 4
    assert all(pd.read_parquet(path).columns.equals(pd.Index(SCHEMA.names)) for path in (old_run / "cells").iterdir())
    frame = made.frame(curves=True)
    assert frame[frame["law"] == "original"].reset_index(drop=True).equals(before)
    assert set(frame["law"]) == set(laws)
    assert images.items() <= contents(old_run / "images").items()


def test_opened_old_run_can_be_extended(tiny_pipeline, old_run, same_model):
    opened = Sweep.open(old_run, tiny_pipeline)
    extend(opened, laws=["paper"], progress=False)
    assert Sweep.open(old_run).frame(curves=True).equals(opened.frame(curves=True))
    assert json.loads((old_run / "manifest.json").read_text())["format"] == 4


def test_interrupted_upgrade_can_be_read_and_finished(old_run, monkeypatch):
    before = Sweep.open(old_run).frame(curves=True)

    def interrupt(path, content):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(directory, "replace_file", interrupt)  # the cells are written, the manifest is not
        with pytest.raises(KeyboardInterrupt):
            Sweep.open(old_run).run.upgrade()
    assert json.loads((old_run / "manifest.json").read_text())["format"] == 3
    assert Sweep.open(old_run).frame(curves=True).equals(before)
    Sweep.open(old_run).run.upgrade()
    assert Sweep.open(old_run).frame(curves=True).equals(before)
    after = contents(old_run)
    Sweep.open(old_run).run.upgrade()
    assert contents(old_run) == after


def test_damaged_old_cell_is_detected(old_run):
    path = original_cells(old_run)[0]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=r"1 of the 2 cells .* missing or damaged"):
        Sweep.open(old_run)


def test_old_run_of_another_model_is_rejected_and_not_changed(tiny_pipeline, old_run):
    before = contents(old_run)
    with pytest.raises(InputError, match="holds another run, with fingerprint 'e134bdea486b9ac7' instead of"):
        sweep(tiny_pipeline, store=old_run, **SETTINGS)
    assert {name: content for name, content in contents(old_run).items() if name in before} == before


def test_manifest_json_roundtrip(old_run):
    manifest = Sweep.open(old_run).manifest
    assert Manifest.from_json(manifest.to_json()) == manifest
