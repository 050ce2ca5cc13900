"""Run directories at a URL: in memory and on an S3 server."""

import boto3
import pandas as pd
import pytest
from moto.server import ThreadedMotoServer

from entropy_probe.cli import main as cli
from entropy_probe.errors import InputError
from entropy_probe.reports import Report, compare
from entropy_probe.runs import Sweep, open_location, sweep

SETTINGS = dict(
    prompts=["noto red apple"], sizes=[(64, 64), (32, 48)], seeds=[0, 1], steps=1, guidance_scale=4.0,
    scale_factors=(2.0,), progress=False, model="tiny",
)  # fmt: skip


@pytest.fixture(scope="module")
def bucket():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            environment.setenv(name, "testing")
        boto3.client("s3").create_bucket(Bucket="studies")
        yield "s3://studies"
    server.stop()


@pytest.fixture(scope="module")
def local(tiny_pipeline, tmp_path_factory):
    return sweep(tiny_pipeline, store=tmp_path_factory.mktemp("local") / "run", **SETTINGS)


def contents(run):
    patterns = {"cells": "*.parquet", "images": "*.png", "": "*.json"}
    return {
        f"{folder}/{path.name}": path.read_bytes()
        for folder, pattern in patterns.items()
        for path in (run.path / folder if folder else run.path).glob(pattern)
    }


@pytest.mark.parametrize("scheme", ["memory", "s3"])
def test_run_at_url_equals_run_in_folder(tiny_pipeline, local, bucket, scheme):
    store = f"{bucket if scheme == 's3' else 'memory://studies'}/runs/apple"
    made = sweep(tiny_pipeline, store=store, **SETTINGS)
    expected = contents(local.run)
    assert len(expected) == 10
    assert contents(made.run) == expected
    first, second, *_ = made.grid.cells()
    made.run.cell_path(first).unlink()
    made.run.image_path(second).write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"2 of the 4 cells .* missing or damaged"):
        Sweep.open(store)
    with pytest.warns(UserWarning, match=f"{second.name} is damaged"):
        sweep(tiny_pipeline, store=store, **SETTINGS)
    assert contents(made.run) == expected
    opened = Sweep.open(store, tiny_pipeline)
    assert opened.frame().equals(local.frame())
    assert opened.image("noto red apple", (32, 48), 1).tobytes() == local.image("noto red apple", (32, 48), 1).tobytes()
    with pytest.raises(InputError, match="another run, with steps 1 instead of 2"):
        sweep(tiny_pipeline, store=store, **{**SETTINGS, "steps": 2})
    page = Report(opened).save(opened.run.path / "report.html", data=True)
    assert page.read_text().startswith("<!doctype html>")
    assert len(pd.read_parquet(f"{store}/records.parquet")) == len(opened.frame())


def test_run_at_url_is_compared_with_run_in_folder(tiny_pipeline, local):
    sweep(tiny_pipeline, store="memory://compared/apple", **SETTINGS)
    compared = compare([local.run.path, "memory://compared/apple"])
    assert list(compared.runs) == ["run", "apple"]
    page = compared.save("memory://compared/page.html")
    assert "compared" in str(page)
    assert page.read_text().startswith("<!doctype html>")
    slopes = compared.slopes().groupby("run")["value"].apply(list)
    assert slopes["run"] == slopes["apple"]


def test_command_line_accepts_url(tiny_folder, bucket, monkeypatch, capsys):
    store = f"{bucket}/runs/cli"
    options = ["--sizes", "32,64", "--prompts", "2", "--seeds", "0", "--steps", "1", "--device", "cpu", "--json"]
    for command in (["sweep", "--model", str(tiny_folder), *options], ["fit", "--json"]):
        monkeypatch.setattr("sys.argv", ["entropy-probe", *command, "--out", store])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
    assert '"cells": 4' in capsys.readouterr().out
    assert (open_location(store) / "fit.json").is_file()


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("s3://nobody/run", r"cannot write s3://nobody/run.*bucket does not exist"),
        ("http://127.0.0.1:9/run", r"cannot write http://127.0.0.1:9/run: .*"),
        ("nothing://a/run", r"cannot use nothing://a/run: .*nothing"),
    ],
)
def test_url_that_cannot_be_written_is_refused(tiny_pipeline, bucket, where, message):
    with pytest.raises(InputError, match=message):
        sweep(tiny_pipeline, store=where, **SETTINGS)


def test_folder_with_other_files_is_refused(tiny_pipeline, bucket):
    (open_location(bucket) / "thesis" / "chapter.txt").write_bytes(b"mine")
    with pytest.raises(InputError, match="neither empty nor a run"):
        sweep(tiny_pipeline, store=f"{bucket}/thesis", **SETTINGS)


def test_file_url_is_the_local_folder(tmp_path):
    assert open_location(f"file://{tmp_path}/run") == tmp_path / "run"
