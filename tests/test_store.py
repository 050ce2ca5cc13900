"""The run directory: content of its files, detection of damage, and sharing by several processes."""

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
from entropy_probe.runs.cells import COLUMNS, SCHEMA, decode, is_intact, read_metadata
from entropy_probe.runs.files import lock, write_atomically
from entropy_probe.runs.grid import Grid
from entropy_probe.runs.image_index import add_to_index
from entropy_probe.runs.manifest import Manifest

PAGE = Path(__file__).parents[1] / "docs" / "run-directory.md"
SETTINGS = dict(
    prompts=["noto red apple", "flat pizza"], sizes=[(64, 64), (32, 48)], seeds=[0, 1], steps=1, guidance_scale=4.0,
    scale_factors=(2.0,), progress=False,
)  # fmt: skip
GRID_OF_24 = {**SETTINGS, "seeds": range(6), "batch": 2, "model": "tiny"}


@pytest.fixture(scope="module")
def sampled(tiny_pipeline, tmp_path_factory):
    return sweep(tiny_pipeline, store=tmp_path_factory.mktemp("sampled") / "entropy-run", **SETTINGS)


@pytest.fixture
def run(sampled, tmp_path):
    shutil.copytree(sampled.run.path, tmp_path / "run")
    return Sweep.open(tmp_path / "run")


def contents(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_page_lists_every_column_and_every_manifest_field():
    page = PAGE.read_text()
    for column in COLUMNS:
        assert f"| `{column.name}` | {column.dtype} | {column.unit} | {column.meaning} |" in page
    assert len(re.findall(r"^\| `", page.split("## The table of a cell")[1], re.MULTILINE)) == len(COLUMNS)
    fields = re.findall(r"^\| `(\w+)`", page.split("## The manifest")[1].split("## The table")[0], re.MULTILINE)
    assert fields == [field.name for field in dataclasses.fields(Manifest)]


def test_cell_file_has_units_format_and_batch(sampled):
    cell = next(sampled.grid.cells())
    content = sampled.run.cell_path(cell).read_bytes()
    schema = decode(content).schema
    assert schema.equals(SCHEMA, check_metadata=False)
    assert {f.name: f.metadata[b"unit"].decode() for f in schema} == {c.name: c.unit for c in COLUMNS}
    assert schema.metadata[b"entropy_probe.format"] == b"4"
    assert set(read_metadata(content).batch) == {c.name for c in sampled.grid.cells() if c.size == cell.size}


def test_pandas_polars_and_duckdb_examples_of_page_work(sampled, monkeypatch):
    monkeypatch.chdir(sampled.run.path.parent)
    keys = ["layer", "height", "width"]
    expected = sampled.frame().groupby(keys)["entropy"].mean()
    tables = []
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        names = {}
        exec(code, names)
        tables.append(names["entropy"])
    in_pandas, in_polars, in_duckdb = tables
    assert isinstance(in_polars, polars.DataFrame)
    for table in (in_pandas, in_polars.to_pandas().set_index(keys), in_duckdb.set_index(keys)):
        values = table.squeeze().sort_index()
        pd.testing.assert_series_equal(values, expected, check_dtype=False, rtol=1e-6)


def test_duckdb_reads_all_values(sampled):
    everything = duckdb.sql(f"SELECT * FROM '{sampled.run.path}/cells/*.parquet'").df()
    order = [*SCHEMA.names[:14], "scale_factor"]
    frame = sampled.frame(curves=True)
    pd.testing.assert_frame_equal(
        everything.sort_values(order, ignore_index=True), frame.sort_values(order, ignore_index=True), check_dtype=False
    )


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(data=st.data())
def test_checksum_detects_flipped_bit_and_lost_byte(sampled, data):
    content = sampled.run.cell_path(next(sampled.grid.cells())).read_bytes()
    assert is_intact(content)
    position = data.draw(st.integers(0, 8 * len(content) - 1))
    flipped = bytearray(content)
    flipped[position // 8] ^= 1 << position % 8
    assert not is_intact(bytes(flipped))
    assert not is_intact(content[: position // 8])
    assert not is_intact(content + b"\0")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("path_of", ["cell_path", "image_path"])
def test_damaged_cell_or_image_is_reported_and_sampled_bit_identical(tiny_pipeline, run, damage, path_of):
    before, cell = contents(run.run.path), list(run.grid.cells())[3]
    damage(getattr(run.run, path_of)(cell))
    with pytest.raises(InputError, match=r"1 of the 8 cells .* missing or damaged: rerun the sweep"):
        Sweep.open(run.run.path)
    if (path_of, damage) == ("cell_path", Path.unlink):
        sweep(tiny_pipeline, store=run.run.path, **SETTINGS)  # a missing cell is not reported as damaged
    else:
        with pytest.warns(UserWarning, match=f"{cell.name} is damaged and will be sampled again"):
            sweep(tiny_pipeline, store=run.run.path, **SETTINGS)
    assert contents(run.run.path) == before


def test_renamed_cell_is_damaged(run):
    one, other = list(run.grid.cells())[:2]
    shutil.copy(run.run.cell_path(one), run.run.cell_path(other))
    shutil.copy(run.run.image_path(one), run.run.image_path(other))
    assert run.run.state(other).fault == "damaged"


def test_index_lists_the_images_and_keeps_other_rows(sampled, tmp_path):
    table = pd.read_csv(sampled.run.path / "images" / "index.csv")
    assert list(table["file"]) == sorted(sampled.run.image_path(cell).name for cell in sampled.grid.cells())
    cell = next(sampled.grid.cells())
    row = table.set_index("file").loc[sampled.run.image_path(cell).name]
    assert tuple(row) == (cell.prompt, *cell.size, cell.seed, cell.law)
    cells = list(Grid.build(["=1+1", 'a "red",\napple'], [(64, 32)], [0], ["paper"]).cells())
    add_to_index(tmp_path, cells[:1])
    add_to_index(tmp_path, cells[1:])
    table = pd.read_csv(tmp_path / "index.csv")
    assert set(table["prompt"]) == {"'=1+1", 'a "red",\napple'}
    (tmp_path / "index.csv").write_bytes(b"\xff\x00")
    add_to_index(tmp_path, cells)
    assert pd.read_csv(tmp_path / "index.csv").equals(table)
    assert [path.name for path in tmp_path.iterdir()] == ["index.csv"]


def test_reading_damaged_cell_names_its_file(run):
    flip(run.run.cell_path(next(run.grid.cells())))
    with pytest.raises(InputError, match=r"_s0\.parquet is damaged: run the sweep again"):
        run.frame()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 1, "anything": 0}, r"format 1 is older than entropy-probe 0\.1\.0 .*: run the sweep again"),
        (
            {"format": 5, "anything": 0, "versions": {"entropy-probe": "0.9"}},
            r"reads format 4, got format 5: install the version that wrote it, '0\.9'",
        ),
        ({"anything": 0}, "damaged: .*'anything'"),
        ({"steps": "3"}, "'steps' must be a valid integer, got '3'"),
        ({"steps": 10**12}, "'steps' must be less than or equal to .*, got 1000000000000"),
        ({"training_size": [64]}, "training_size"),
        ({"guidance_scale": None}, "'guidance_scale' must be a valid number, got None"),
        ({"model": "x" * 5000}, "'model' must have at most 4096 characters, got 'xxx"),
        ({"rows": "some"}, "'rows.* must be "),
    ],
)
def test_invalid_manifest_is_rejected(run, change, message):
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
def test_malformed_manifest_and_grid_are_rejected(run, text):
    for name in ("grid.json", "manifest.json"):
        (run.run.path / name).write_bytes(text.encode(errors="surrogatepass"))
        with pytest.raises(InputError, match=r"not a valid grid|damaged"):
            Sweep.open(run.run.path)


def not_parquet(path):
    """Write a file with a valid checksum that is not a parquet file."""
    path.write_bytes(cells.with_checksum(b"no parquet at all blake2b:" + b"0" * 32))


def without_metadata(path):
    table = pq.read_table(path)
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"entropy_probe.checksum": "blake2b:" + "0" * 32})
    path.write_bytes(cells.with_checksum(sink.getvalue()))


@pytest.mark.parametrize("damage", [not_parquet, without_metadata])
def test_foreign_file_with_valid_checksum_is_damaged(run, damage):
    cell = next(run.grid.cells())
    damage(run.run.cell_path(cell))
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
def test_sweep_rejects_settings_that_the_manifest_cannot_hold(tiny_pipeline, tmp_path, change, message):
    with pytest.raises(InputError, match=rf"cannot write these settings to the manifest: .*{message}"):
        sweep(tiny_pipeline, store=tmp_path / "run", **{**SETTINGS, **change})
    assert not (tmp_path / "run").exists()


def test_resuming_with_other_versions_warns(tiny_pipeline, run):
    fields = json.loads(run.run.manifest_path.read_text())
    fields["versions"]["torch"] = "1.0"
    run.run.manifest_path.write_text(json.dumps(fields))
    with pytest.warns(UserWarning, match=r"was started with torch 1\.0, not .*: new cells may differ"):
        sweep(tiny_pipeline, store=run.run.path, **SETTINGS)


def test_sweep_joins_run_that_another_process_creates_at_the_same_time(tiny_pipeline, tmp_path, monkeypatch):
    """The other process finishes after the folder was listed and before its manifest is read."""
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


def test_opening_run_with_failed_cells_names_reason_and_fix(tiny_pipeline, run):
    cell = next(run.grid.cells())
    run.run.cell_path(cell).unlink()
    run.run.save_failure(cell, "out of memory at 32x48: no more")
    with pytest.raises(InputError, match=r"1 of the 8 cells .* out of memory at 32x48: no more.*or without 32x48"):
        Sweep.open(run.run.path)


def test_reading_run_writes_nothing(run):
    before = contents(run.run.path)
    assert len(Sweep.open(run.run.path).frame())
    assert contents(run.run.path) == before


def test_lock_is_exclusive_and_ends_with_its_context(tmp_path):
    path = tmp_path / "x"
    with lock([path]) as first, lock([path, tmp_path / "y"], wait=False) as second:
        assert (first, second) == (True, False)
    with lock([path], wait=False) as third:
        assert third
    write_atomically(path, b"content")
    assert contents(tmp_path) == {"x": b"content"}


SWEEPER = """
import sys, torch
from entropy_probe.models import load
from entropy_probe.runs import engines, sweep

def logged(pipeline, cells, law, manifest, *others, sample=engines.sample_cells):
    for cell in cells:
        print(cell.name, flush=True)
    yield from sample(pipeline, cells, law, manifest, *others)

engines.sample_cells = logged
model, store, shard, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
sweep(
    load(model, device="cpu"), prompts=["noto red apple", "flat pizza"], sizes=[(64, 64), (32, 48)], seeds=range(6),
    steps=1, guidance_scale=4.0, scale_factors=(2.0,), progress=False, store=store, batch=2, model="tiny",
    shard=tuple(map(int, shard.split("/"))),
)
"""


def sweepers(model, store, shards):
    """Run processes that sweep the grid at the same time. Return the cells that each sampled."""
    command = [sys.executable, "-c", SWEEPER, str(model), str(store)]
    threads = str(torch.get_num_threads())  # influences the last digits
    options = {"cwd": Path(store).parent, "stdout": subprocess.PIPE, "text": True}  # not the folder of the sources
    started = [subprocess.Popen([*command, shard, threads], **options) for shard in shards]
    sampled = [process.communicate()[0].split() for process in started]
    assert [process.returncode for process in started] == [0] * len(shards)
    return sampled


@pytest.fixture(scope="module")
def one_process(tiny_pipeline, tmp_path_factory):
    """The same grid, sampled by one process."""
    return sweep(tiny_pipeline, store=tmp_path_factory.mktemp("one") / "run", **GRID_OF_24).run.path


def test_two_processes_share_run_and_sample_every_cell_once(one_process, tiny_folder, tmp_path):
    sampled = sweepers(tiny_folder, tmp_path / "run", ["1/1", "2/2"])
    assert len(set().union(*sampled)) == sum(map(len, sampled)) == 24
    assert contents(tmp_path / "run") == contents(one_process)
    assert Sweep.open(tmp_path / "run").frame().equals(Sweep.open(one_process).frame())


def test_shards_together_equal_the_run_of_one_process(one_process, tiny_pipeline, tmp_path):
    counts = []
    for shard in ((1, 2), (2, 2)):
        sweep(tiny_pipeline, store=tmp_path / "run", shard=shard, **GRID_OF_24)
        counts.append(len(list((tmp_path / "run" / "cells").iterdir())))
    assert 0 < counts[0] < counts[1] == 24
    assert contents(tmp_path / "run") == contents(one_process)


@pytest.mark.parametrize("name", ["images", "failed"])
def test_files_that_another_process_writes_are_not_removed(one_process, tmp_path, name):
    run = shutil.copytree(one_process, tmp_path / "run")
    made = Sweep.open(run)
    cell = next(iter(made.grid.cells()))
    part = run / name / f".{cell.name}.png.part"
    part.write_bytes(b"half an image")
    command = [sys.executable, "-c", LOCKER, str(made.run.cell_path(cell))]
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        made.run.remove_leftovers()
        assert part.exists()
        other.communicate(b"done")
    made.run.remove_leftovers()
    assert not part.exists()


LOCKER = """
import sys
from pathlib import Path
from entropy_probe.runs.files import lock
with lock([Path(sys.argv[1])]):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_one_shard_is_an_incomplete_run(tiny_pipeline, tmp_path):
    made = sweep(tiny_pipeline, store=tmp_path / "run", **SETTINGS, batch=2, shard=(2, 3))
    missing = 8 - len(list((tmp_path / "run" / "cells").iterdir()))
    assert 0 < missing < 8
    with pytest.raises(InputError, match=f"{missing} of the 8 cells"):
        Sweep.open(tmp_path / "run")
    with pytest.raises(InputError, match="is missing: run the sweep again"):
        made.frame()


def test_index_of_images_is_completed_after_a_kill(tiny_pipeline, tmp_path):
    grid = dict(prompts=["flat pizza"], sizes=[(64, 64)], steps=1, store=tmp_path / "run", progress=False)
    sweep(tiny_pipeline, **grid)
    index = tmp_path / "run" / "images" / "index.csv"
    expected = index.read_bytes()
    index.unlink()
    sweep(tiny_pipeline, **grid)
    assert index.read_bytes() == expected
