"""The run directory as a contract: what its files hold, that damage is seen, and that processes share it."""

import dataclasses
import io
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pandas as pd
import polars
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entropy_probe.errors import InputError
from entropy_probe.runs import Sweep, cells, sweep
from entropy_probe.runs.cells import COLUMNS, SCHEMA, decode, notes, whole
from entropy_probe.runs.directory import Manifest
from entropy_probe.runs.files import claim, write_atomically

PAGE = Path(__file__).parents[1] / "docs" / "run-directory.md"
SETTINGS = dict(
    prompts=["noto red apple", "flat pizza"], sizes=[(64, 64), (32, 48)], seeds=[0, 1], steps=1, guidance_scale=4.0,
    scale_factors=(2.0,), progress=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def kept(tiny_pipeline, tmp_path_factory):
    return sweep(tiny_pipeline, store=tmp_path_factory.mktemp("kept") / "entropy-run", **SETTINGS)


@pytest.fixture
def run(kept, tmp_path):
    shutil.copytree(kept.run.path, tmp_path / "run")
    return Sweep.open(tmp_path / "run")


def contents(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_the_page_names_every_column_with_its_unit_and_every_field_of_the_manifest():
    page = PAGE.read_text()
    for column in COLUMNS:
        assert f"| `{column.name}` | {column.dtype} | {column.unit} | {column.meaning} |" in page
    assert len(re.findall(r"^\| `", page.split("## The table of a cell")[1], re.MULTILINE)) == len(COLUMNS)
    fields = re.findall(r"^\| `(\w+)`", page.split("## The manifest")[1].split("## The table")[0], re.MULTILINE)
    assert fields == [field.name for field in dataclasses.fields(Manifest)]


def test_a_cell_says_its_units_and_what_it_was_sampled_with(kept):
    cell = next(kept.grid.cells())
    content = kept.run.cell_path(cell).read_bytes()
    schema = decode(content).schema
    assert schema.equals(SCHEMA, check_metadata=False)
    assert {f.name: f.metadata[b"unit"].decode() for f in schema} == {c.name: c.unit for c in COLUMNS}
    assert schema.metadata[b"entropy_probe.format"] == b"3"
    assert set(notes(content).batch) == {c.name for c in kept.grid.cells() if c.size == cell.size}


def test_pandas_polars_and_duckdb_read_a_run_as_the_page_says(kept, monkeypatch):
    monkeypatch.chdir(kept.run.path.parent)
    keys = ["layer", "height", "width"]
    truth = kept.frame().groupby(keys)["entropy"].mean()
    found = []
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        names = {}
        exec(code, names)
        found.append(names["entropy"])
    in_pandas, in_polars, in_duckdb = found
    assert isinstance(in_polars, polars.DataFrame)
    for table in (in_pandas, in_polars.to_pandas().set_index(keys), in_duckdb.set_index(keys)):
        values = table.squeeze().sort_index()
        pd.testing.assert_series_equal(values, truth, check_dtype=False, rtol=1e-6)


def test_duckdb_reads_every_value_of_every_column(kept):
    whole_run = duckdb.sql(f"SELECT * FROM '{kept.run.path}/cells/*.parquet'").df()
    order = [*SCHEMA.names[:14], "scale_factor"]
    own = kept.frame(curves=True)
    pd.testing.assert_frame_equal(
        whole_run.sort_values(order, ignore_index=True), own.sort_values(order, ignore_index=True), check_dtype=False
    )


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(data=st.data())
def test_a_single_flipped_bit_or_a_lost_byte_is_seen(kept, data):
    content = kept.run.cell_path(next(kept.grid.cells())).read_bytes()
    assert whole(content)
    place = data.draw(st.integers(0, 8 * len(content) - 1))
    flipped = bytearray(content)
    flipped[place // 8] ^= 1 << place % 8
    assert not whole(bytes(flipped))
    assert not whole(content[: place // 8])
    assert not whole(content + b"\0")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("harm", [flip, cut, Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("what", ["cell_path", "image_path"])
def test_a_harmed_cell_or_image_is_done_again_to_the_bit_and_said_so(tiny_pipeline, run, harm, what):
    before, cell = contents(run.run.path), list(run.grid.cells())[3]
    harm(getattr(run.run, what)(cell))
    with pytest.raises(InputError, match=r"1 of the 8 cells .* missing or damaged: run the sweep again"):
        Sweep.open(run.run.path)
    if (what, harm) == ("cell_path", Path.unlink):
        sweep(tiny_pipeline, store=run.run.path, **SETTINGS)  # not there is not damaged
    else:
        with pytest.warns(UserWarning, match=f"{cell.name} is damaged and will be sampled again"):
            sweep(tiny_pipeline, store=run.run.path, **SETTINGS)
    assert contents(run.run.path) == before


def test_a_cell_under_another_name_is_none(run):
    one, other = list(run.grid.cells())[:2]
    shutil.copy(run.run.cell_path(one), run.run.cell_path(other))
    shutil.copy(run.run.image_path(one), run.run.image_path(other))
    assert run.run.state(other).fault == "damaged"


def test_reading_a_damaged_cell_names_it(run):
    flip(run.run.cell_path(next(run.grid.cells())))
    with pytest.raises(InputError, match=r"_s0\.parquet is damaged: run the sweep again"):
        run.frame()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 1, "anything": 0}, r"layout 1, from before entropy-probe 0\.1\.0 .*: sample anew"),
        (
            {"format": 4, "anything": 0, "versions": {"entropy-probe": "0.9"}},
            r"layout 4, .* reads layout 3: install the version that wrote it, '0\.9'",
        ),
        ({"anything": 0}, "damaged: .*'anything'"),
        ({"steps": "3"}, "valid integer in 'steps'"),
        ({"steps": 10**12}, "less than or equal to .* in 'steps'"),
        ({"training_size": [64]}, "training_size"),
        ({"guidance_scale": None}, "valid number in 'guidance_scale'"),
        ({"model": "x" * 5000}, "at most 4096 characters in 'model'"),
        ({"rows": "some"}, "in 'rows"),
    ],
)
def test_a_manifest_from_elsewhere_is_checked(run, change, message):
    fields = json.loads(run.run.manifest_path.read_text())
    run.run.manifest_path.write_text(json.dumps({**fields, **change}))
    with pytest.raises(InputError, match=message):
        Sweep.open(run.run.path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"format": Infinity, "versions": {"entropy-probe": "9"}}',
        "[" * 100_000,
        '{"prompts": 3}',
        "\ud800",
    ],
)
def test_what_is_no_manifest_or_grid_is_refused(run, text):
    for name in ("grid.json", "manifest.json"):
        (run.run.path / name).write_bytes(text.encode(errors="surrogatepass"))
        with pytest.raises(InputError, match=r"no grid|damaged"):
            Sweep.open(run.run.path)


def sealed(path):
    """A file that is no parquet, with the checksum of a cell."""
    path.write_bytes(cells._sealed(b"no parquet at all blake2b:" + b"0" * 32))


def without_notes(path):
    table = pq.read_table(path)
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"entropy_probe.checksum": "blake2b:" + "0" * 32})
    path.write_bytes(cells._sealed(sink.getvalue()))


@pytest.mark.parametrize("harm", [sealed, without_notes])
def test_a_cell_with_a_good_checksum_that_is_none_of_ours_is_damaged(run, harm):
    cell = next(run.grid.cells())
    harm(run.run.cell_path(cell))
    assert run.run.state(cell).fault == "damaged"
    with pytest.raises(InputError, match="is damaged: run the sweep again"):
        run.frame()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "x" * 5000}, "'model'"),
        ({"scale_factors": (math.nan,)}, "'scale_factors"),
        ({"rows": 2**40}, "'rows"),
    ],
)
def test_settings_that_could_not_be_read_back_are_refused_before_anything_is_written(
    tiny_pipeline, tmp_path, change, message
):
    with pytest.raises(InputError, match=rf"these settings cannot be kept: .*{message}"):
        sweep(tiny_pipeline, store=tmp_path / "run", **{**SETTINGS, **change})
    assert not (tmp_path / "run").exists()


def test_a_run_taken_up_by_other_versions_says_so(tiny_pipeline, run):
    fields = json.loads(run.run.manifest_path.read_text())
    fields["versions"]["torch"] = "1.0"
    run.run.manifest_path.write_text(json.dumps(fields))
    with pytest.warns(UserWarning, match=r"was begun with torch 1\.0, not .*: new cells may differ"):
        sweep(tiny_pipeline, store=run.run.path, **SETTINGS)


def test_a_folder_that_another_process_makes_a_run_of_meanwhile_is_taken_up(tiny_pipeline, tmp_path, monkeypatch):
    """The other finishes between the look at what lies there and the look for its manifest."""
    first = sweep(tiny_pipeline, store=tmp_path / "first", **SETTINGS)
    store = tmp_path / "run"
    store.mkdir()

    original = Path.iterdir

    def listed(path):
        if path == store and not (store / "manifest.json").exists():
            shutil.copytree(first.run.path, store, dirs_exist_ok=True)
        return original(path)

    monkeypatch.setattr(Path, "iterdir", listed)
    assert sweep(tiny_pipeline, store=store, **SETTINGS).frame().equals(first.frame())


def test_failed_cells_say_why_and_what_to_leave_out(tiny_pipeline, run):
    cell = next(run.grid.cells())
    run.run.cell_path(cell).unlink()
    run.run.fail(cell, "out of memory at 32x48: no more")
    with pytest.raises(InputError, match=r"1 of the 8 cells .* out of memory at 32x48: no more.*or without 32x48"):
        Sweep.open(run.run.path)


def test_reading_a_run_writes_nothing(run):
    before = contents(run.run.path)
    assert len(Sweep.open(run.run.path).frame())
    assert contents(run.run.path) == before


def test_claims_are_for_one_and_end(tmp_path):
    path = tmp_path / "x"
    with claim([path]) as mine, claim([path, tmp_path / "y"], wait=False) as again:
        assert (mine, again) == (True, False)
    with claim([path], wait=False) as mine:
        assert mine
    write_atomically(path, b"content")
    assert contents(tmp_path) == {"x": b"content"}


SWEEPER = """
import importlib, sys, torch
from entropy_probe.models import load
from entropy_probe.runs import sweep
module = importlib.import_module("entropy_probe.runs.engines")

def noted(pipeline, part, law, manifest, sample=module.sample_cells):
    for cell in part:
        print(cell.name, flush=True)
    yield from sample(pipeline, part, law, manifest)

module.sample_cells = noted
model, store, shard, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
sweep(
    load(model, device="cpu"), prompts=["noto red apple", "flat pizza"], sizes=[(64, 64), (32, 48)], seeds=range(6),
    steps=1, guidance_scale=4.0, scale_factors=(2.0,), progress=False, store=store, batch=2, model="tiny",
    shard=tuple(map(int, shard.split("/"))),
)
"""


def sweepers(model, store, shards):
    """Processes that sweep one grid of 24 cells at once, and the cells that each sampled."""
    command = [sys.executable, "-c", SWEEPER, str(model), str(store)]
    threads = str(torch.get_num_threads())  # they decide the last digits
    away = {"cwd": Path(store).parent, "stdout": subprocess.PIPE, "text": True}  # here lie sources
    started = [subprocess.Popen([*command, shard, threads], **away) for shard in shards]
    sampled = [process.communicate()[0].split() for process in started]
    assert [process.returncode for process in started] == [0] * len(shards)
    return sampled


@pytest.fixture(scope="module")
def alone(tiny_pipeline, tmp_path_factory):
    """The same grid by one process."""
    grid = {**SETTINGS, "seeds": range(6), "batch": 2, "model": "tiny"}
    return sweep(tiny_pipeline, store=tmp_path_factory.mktemp("alone") / "run", **grid).run.path


@pytest.mark.parametrize("shards", [["1/1", "1/1"], ["1/2", "2/2"]])
def test_two_processes_share_a_run_and_do_no_cell_twice(alone, tiny_folder, tmp_path, shards):
    one, other = sweepers(tiny_folder, tmp_path / "run", shards)
    assert not set(one) & set(other)
    assert len(one) + len(other) == 24
    assert contents(tmp_path / "run") == contents(alone)
    assert Sweep.open(tmp_path / "run").frame().equals(Sweep.open(alone).frame())


@pytest.mark.parametrize("name", ["images", "failed"])
def test_what_another_process_is_writing_is_not_tidied_away(alone, tmp_path, name):
    run = shutil.copytree(alone, tmp_path / "run")
    made = Sweep.open(run)
    cell = next(iter(made.grid.cells()))
    part = run / name / f".{cell.name}.png.part"
    part.write_bytes(b"half an image")
    claimed = [sys.executable, "-c", CLAIMER, str(made.run.cell_path(cell))]
    with subprocess.Popen(claimed, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        made.run.tidy()
        assert part.exists()
        other.communicate(b"done")
    made.run.tidy()
    assert not part.exists()


CLAIMER = """
import sys
from pathlib import Path
from entropy_probe.runs.files import claim
with claim([Path(sys.argv[1])]):
    print("claimed", flush=True)
    sys.stdin.read()
"""


def test_one_shard_is_not_the_whole_run(tiny_pipeline, tmp_path):
    made = sweep(tiny_pipeline, store=tmp_path / "run", **SETTINGS, batch=2, shard=(2, 3))
    missing = 8 - len(list((tmp_path / "run" / "cells").iterdir()))
    assert 0 < missing < 8
    with pytest.raises(InputError, match=f"{missing} of the 8 cells"):
        Sweep.open(tmp_path / "run")
    with pytest.raises(InputError, match="is missing: run the sweep again"):
        made.frame()
