"""Hostile prompts, names, files and models: no code runs, and no file outside the run is changed."""

import base64
import builtins
import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import tracemalloc
from csv import reader as csv_reader
from html.parser import HTMLParser
from importlib.resources import files
from io import StringIO

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from entropy_probe import reference
from entropy_probe.cli import main as cli
from entropy_probe.cli.parsing import parse_prompts
from entropy_probe.errors import InputError
from entropy_probe.escape import for_spreadsheet, for_terminal
from entropy_probe.evaluation.networks import Clip, Vision, load_scorer
from entropy_probe.laws import Measured, from_json, resolve, to_json
from entropy_probe.models import fingerprint, load
from entropy_probe.reports import Report
from entropy_probe.reports.page import csv
from entropy_probe.runs import Grid, Sweep, sweep
from entropy_probe.runs.cells import COLUMNS
from entropy_probe.strict_json import MAX_BYTES, read_bounded

SCRIPT = "<script>alert(1)</script>"
PROMPTS = (
    SCRIPT,
    "\"><img src=x onerror=alert(1)>{{ 7 * 7 }}{% raw %}",
    "../../x",
    "/etc/passwd\0.png",
    "=cmd|' /C calc'!A0",
    "bell \a, escape \x1b[31mred\x1b]0;title\x07, delete \x7f",
    "right to left \u202eevil\u202c \u2066isolate\u2069 \ufeff",
    "woman \U0001f469\u200d\U0001f680 \U0001f9d1\U0001f3fd cafe\u0301 \u0634\u0645\u0633",
    "$\\frac{$ %s %(x)s [bold]x[/bold] $(reboot) `reboot` ; rm -rf",
    "0" * 64 + "blake2b:" + "0" * 32,
    "'; DROP TABLE cells; --",
    "x" * 10_000,
)  # fmt: skip
LAYERS = (SCRIPT, "=1+1", "@SUM(A1)", "-2+3", "+4", "$\\x", "[link=file:///]a[/link]", "\x1b[2J", "..")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cpu:x"], "device 'cpu:x' is not available"),
        (["--seeds", "18446744073709551616"], "seeds must be less than 2^63"),
        (["--sizes", "1000000"], "height and width must be at most 16384 pixels"),
        (["--law", "a" * 300], "unknown law 'aaa"),
        (["--law", "a\0b"], "unknown law 'a"),
        (["--law", "FIFO"], "there is no file"),
        (["--law", "FLOOR"], "has a scale factor of 1e+308"),
        (["--config", "FIFO"], "is not a regular file"),
        (["--out", "s3://bucket/folder"], "sample writes to a local folder"),
        (["--model", "a" * 300], "unknown model 'aaa"),
    ],
)
def test_bad_value_is_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    os.mkfifo(tmp_path / "FIFO")
    (tmp_path / "FLOOR").write_text('{"law": "kappa", "kappa": {"*": 0.5}, "floor": 1e308}')
    monkeypatch.chdir(tmp_path)
    named = [str(tmp_path / value) if value in ("FIFO", "FLOOR") else value for value in arguments]
    monkeypatch.setattr(sys, "argv", ["entropy-probe", "sample", "cat", "--steps", "1", "--sizes", "32", *named])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert {path.name for path in tmp_path.iterdir()} <= {"FIFO", "FLOOR", "samples"}


def test_report_of_a_foreign_run_does_not_load_the_model_that_it_names(run, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(run.run.path, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "model": "somebody/a-model"}))
    monkeypatch.setattr(DiffusionPipeline, "download", lambda *args, **kwargs: pytest.fail("the hub was asked"))
    monkeypatch.setattr(sys, "argv", ["entropy-probe", "report", "--out", str(folder)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0
    assert "no entropy maps: the model 'somebody/a-model' is not on this machine" in capsys.readouterr().err
    assert (folder / "report.html").is_file()


def test_cells_of_another_run_are_refused(tiny_pipeline, tmp_path):
    made = [
        sweep(
            tiny_pipeline, prompts=["a"], sizes=[(64, 64), (32, 32)], steps=steps, store=tmp_path / f"{steps} steps",
            progress=False,
        )
        for steps in (1, 2)
    ]  # fmt: skip
    for folder in ("cells", "images"):
        for file in (made[0].run.path / folder).iterdir():
            shutil.copy(file, made[1].run.path / folder / file.name)
    assert made[1].run.state(next(iter(made[1].grid.cells()))).fault == "from another run"
    with pytest.raises(InputError, match="is from another run: run the sweep again to sample it"):
        made[1].frame()
    with pytest.raises(InputError, match=r"2 of the 2 cells .* are missing or damaged"):
        Sweep.open(tmp_path / "2 steps")
    again = sweep(
        tiny_pipeline, prompts=["a"], sizes=[(64, 64), (32, 32)], steps=2, store=tmp_path / "2 steps", progress=False
    )
    assert set(again.frame()["step"]) == {0, 1}


def test_prompts_of_a_pipe_without_a_writer_are_refused(tmp_path):
    os.mkfifo(tmp_path / "prompts.txt")
    with pytest.raises(InputError, match="not a regular file"):
        parse_prompts(str(tmp_path / "prompts.txt"), 8)


def test_numbers_of_numpy_are_accepted(tiny_pipeline, tmp_path):
    swept = sweep(
        tiny_pipeline, prompts=["a"], sizes=[(64, 64)], seeds=np.arange(2), steps=np.int64(1), rows=np.int64(8),
        store=tmp_path / "run", progress=False,
    )  # fmt: skip
    assert swept.grid.seeds == (0, 1)
    assert Sweep.open(tmp_path / "run").grid == swept.grid


@pytest.fixture(scope="module")
def run(tiny_pipeline, tmp_path_factory):
    """A real sweep with hostile prompts, from a model with a hostile name."""
    store = tmp_path_factory.mktemp("run") / "run"
    return sweep(
        tiny_pipeline, prompts=PROMPTS, sizes=[(32, 32), (64, 64)], seeds=[0], steps=1, guidance_scale=4.0,
        scale_factors=(), progress=False, model=f"../../{SCRIPT}\u202e\x1b[2J", store=store,
    )  # fmt: skip


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_files_stay_in_run_directory_and_prompts_are_unchanged(run):
    names = {p.name for p in run.run.path.parent.rglob("*") if p.is_file()}
    assert all(name.isascii() and "/" not in name and len(name) < 200 for name in names)
    assert [p.name for p in run.run.path.parent.iterdir()] == ["run"]
    opened = Sweep.open(run.run.path)
    assert opened.grid.prompts == PROMPTS
    assert set(opened.frame()["prompt"]) == set(PROMPTS)
    for prompt in PROMPTS:
        assert isinstance(opened.image(prompt, (32, 32), 0), Image.Image)


def assert_only_package_script(text):
    """Check that the page has only the script of the package, and that its policy allows no other script."""
    script = files("entropy_probe.reports").joinpath("page.js").read_text("utf-8")
    assert text.lower().count("<script") == 1
    assert f"<script>{script}</script>" in text
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    assert f"script-src 'sha256-{digest}';" in policy


def test_report_runs_no_foreign_script(run, tmp_path):
    made = Report(run, command=f"entropy-probe --model '{SCRIPT}'")
    text = made.save(tmp_path / "report.html", data=True).read_text()
    page = Page(text)
    assert not page.tags & {"iframe", "object", "embed", "link", "base", "form"}
    assert_only_package_script(text)
    assert not [name for name in page.attributes if name.startswith("on")]
    assert "default-src 'none'" in text
    assert SCRIPT not in text
    assert "49" not in text.split("<h1>")[1].split("</h1>")[0]
    assert json.loads((tmp_path / "report.json").read_text())["settings"]["prompts"] == list(PROMPTS)
    assert set(pd.read_parquet(tmp_path / "records.parquet")["prompt"]) == set(PROMPTS)


def test_hostile_layer_names_are_shown_as_text(run, tmp_path):
    cells = list(run.grid.cells())[:2]
    frame = run.run.read(cells)
    base = frame[frame["layer"] == frame["layer"].iloc[0]]
    layers = pd.concat([base.assign(layer=name) for name in LAYERS])
    grid = Grid(PROMPTS[:1], ((32, 32), (64, 64)), (0,), (resolve("original"),))
    copy = tmp_path / "run"
    shutil.copytree(run.run.path, copy)
    (copy / "grid.json").write_text(grid.to_json())
    other = Sweep.open(copy)
    for cell in grid.cells():
        table = layers.assign(prompt=cell.prompt, height=cell.size[0], width=cell.size[1])
        other.run.save(cell, table[[c.name for c in COLUMNS]], Image.new("RGB", cell.size))
    text = Report(Sweep.open(copy)).save(tmp_path / "report.html", data=True).read_text()
    assert "a1" not in Page(text).tags
    assert_only_package_script(text)
    table = pd.read_csv(tmp_path / "summary.csv", dtype=str)
    assert {"'=1+1", "'@SUM(A1)", "'-2+3", "'+4", SCRIPT} <= set(table["layer"])
    assert not [value for value in table["layer"] if value[0] in "=+-@\t\r"]


def test_terminal_gets_only_printable_text():
    assert for_terminal("\x1b[31m \u202e \x00 \ud800 \r") == r"\x1b[31m \u202e \x00 \ud800 \r"
    plain = "two\nlines, \U0001f469\u200d\U0001f680, \u0634\u0645\u0633, 東京"
    assert for_terminal(plain) == plain
    assert for_spreadsheet("down_blocks.0 = 1") == "down_blocks.0 = 1"


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_has_no_formula_for_any_separator(separator):
    texts = ["=1+1", "x;=cmd|'/C calc'!A0", "x\t=1", "\uff1d1+1", 'x";=1;"', "fine"]
    text = csv(pd.DataFrame({"layer": texts, "=entropy": [1.0] * len(texts)}))
    cells = [cell for row in csv_reader(StringIO(text), delimiter=separator) for cell in row]
    assert not [cell for cell in cells if cell.startswith(tuple("=+-@\uff1d"))]


@pytest.mark.parametrize(
    "name", ["\x1b[2J\x1b]0;owned\x07", "[bold]x[/bold]", "a\u202eb", "../../x", SCRIPT, "x\nerror: forged"]
)
def test_error_is_one_printable_line(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["entropy-probe", "info", "--model", f"/nowhere/{name}"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    message = capsys.readouterr().err
    assert (stop.value.code, message.count("\n")) == (2, 1)
    assert message[:-1].isprintable()
    assert name in message or "\\" in message


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("x" * 10_000_000, "a prompt has 10,000,000 characters, the maximum is 10,000"),
        ("\ud800", "a prompt is not valid Unicode: surrogates not allowed at character 0"),
        ("\u2003\n", "blank"),
    ],
)
def test_too_long_blank_and_invalid_prompts_are_rejected(tiny_pipeline, tmp_path, prompt, message):
    with pytest.raises(InputError, match=message):
        sweep(tiny_pipeline, prompts=[prompt], sizes=[(32, 32)], store=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["../../x", "/x", "a/b", "", ".", "x" * 100, "a\0b", SCRIPT, "a b"])
def test_law_name_cannot_be_a_path(name):
    class Mine(Measured):
        pass

    law = Mine({"*": ((1.0, 2.0),)})
    object.__setattr__(law, "name", name)
    with pytest.raises(InputError, match="the name of a law must have"):
        Grid(("a",), ((32, 32),), (0,), (law,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"law": "__class__"}', "'law' must be one of 'original', .*, got '__class__'"),
        ('{"law": "paper", "hook": "os.system"}', "unknown field 'hook': remove it"),
        ('{"law": "measured", "points": {"a": [[0.5, NaN]]}}', "'points.a.0.1' must be a finite number, got nan"),
        ('{"law": "measured", "points": {"a": [[0.5, -1.0]]}}', "'points.a.0.1' must be greater than 0, got -1.0"),
        ('{"law": "gaussian", "logit_variance": {"a": 0.0}}', "'logit_variance.a' must be greater than 0, got 0.0"),
        ('{"law": "kappa", "kappa": {"a": "1"}}', "'kappa.a' must be a valid number, got '1'"),
        ('{"law": ["paper"]}', r"'law' must be one of .*, got \['paper'\]"),
        ("[" * 200_000, "recursion"),
        (" " * (64 * 2**20 + 1), "longer than 64 MiB"),
    ],
)
def test_invalid_law_file_is_rejected(text, message):
    with pytest.raises(InputError, match=message):
        from_json(text)


def test_valid_law_json_roundtrip():
    law = Measured({"a": ((0.5, 1.1), (1.4, 1.9))}, {"a": 0.4}, {"a": 0.1})
    assert from_json(to_json(law)) == law


class Touch:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def only_pickle(folder, mark):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"x": Touch(mark)}, folder / "unet" / "diffusion_pytorch_model.bin")


def pickle_with_unused_safetensors(folder, mark):
    only_pickle(folder, mark)
    shutil.copy(folder / "vae" / "diffusion_pytorch_model.safetensors", folder / "unet" / "other.safetensors")


def pickled_text_encoder(folder, mark):
    (folder / "text_encoder" / "model.safetensors").rename(folder / "text_encoder" / "other.safetensors")
    torch.save({"x": Touch(mark)}, folder / "text_encoder" / "pytorch_model.bin")


def code_of_a_part(folder, mark):
    (folder / "unet" / "mine.py").write_text(f"import os\nos.system('touch {mark}')\nclass Mine: pass\n")
    change_index(folder, unet=["mine", "Mine"])


def code_of_the_pipeline(folder, mark):
    (folder / "mine.py").write_text(f"import os\nos.system('touch {mark}')\nclass Mine: pass\n")
    change_index(folder, _class_name=["mine", "Mine"])


def another_library(folder, mark):
    change_index(folder, unet=["os", "system"])


def adapter_weights(folder, mark):
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "transformers_weights": "adapter_model.bin"}))
    torch.save({"x": Touch(mark)}, folder / "text_encoder" / "adapter_model.bin")


def pickled_adapter(folder, mark):
    (folder / "text_encoder" / "adapter_config.json").write_text('{"peft_type": "LORA", "target_modules": ["q_proj"]}')
    torch.save({"x": Touch(mark)}, folder / "text_encoder" / "adapter_model.bin")


def adapter_of_another_model(folder, mark):
    (folder / "text_encoder" / "config.json").unlink()
    (folder / "text_encoder" / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{mark}"}}')


def change_index(folder, **change):
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), **change}))


HOSTILE = [
    only_pickle, pickle_with_unused_safetensors, pickled_text_encoder,
    code_of_a_part, code_of_the_pipeline, another_library,
    adapter_weights, pickled_adapter, adapter_of_another_model,
]  # fmt: skip


@pytest.mark.parametrize("harm", HOSTILE)
def test_model_with_code_is_rejected_and_runs_none(tiny_folder, tmp_path, harm):
    mark, folder = tmp_path / "ran", tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    harm(folder, mark)
    with pytest.raises(InputError) as refusal:
        load(folder, device="cpu")
    assert "\n" not in str(refusal.value)
    assert not mark.exists()


INDEXES = {
    "unet": "diffusion_pytorch_model.safetensors.index.json",
    "vae": "diffusion_pytorch_model.fp16.safetensors.index.json",
    "text_encoder": "model.safetensors.index.json",
}
"""A sharded index of every component with weights, by the names that diffusers and transformers look for."""


@pytest.fixture(scope="module")
def pickled_folder(tiny_folder, tmp_path_factory):
    """A model folder. Each component has pickled weights, and a safetensors file that no index names."""
    folder = tmp_path_factory.mktemp("pickled") / "model"
    shutil.copytree(tiny_folder, folder)
    for part in INDEXES:
        (weights,) = (folder / part).glob("*.safetensors")
        weights.rename(folder / part / "unused.safetensors")
        for name in ("weights.bin", "weights.pt", "weights.ckpt", "weights.pickle", "weights.SAFETENSORS"):
            torch.save({"x": torch.zeros(1)}, folder / part / name)
    shutil.copy(folder / "unet" / "unused.safetensors", folder / "outside.safetensors")
    return folder


SHARDS = (
    "weights.bin", "weights.pt", "weights.ckpt", "weights.pickle", "weights.SAFETENSORS", "../outside.safetensors",
    "..\\outside.safetensors", "/outside.safetensors", "C:outside.safetensors", "", None, 1,
)  # fmt: skip


@pytest.mark.parametrize("shard", SHARDS)
@pytest.mark.parametrize("part", INDEXES)
def test_index_of_other_files_than_safetensors_is_rejected(pickled_folder, monkeypatch, part, shard):
    unpickled = []
    monkeypatch.setattr(torch, "load", lambda *args, **_: unpickled.append(args))
    index = pickled_folder / part / INDEXES[part]
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"a": "unused.safetensors", "b": shard}}))
    try:
        with pytest.raises(
            InputError,
            match=rf"{index.name} must name only \.safetensors files next to it, got {re.escape(repr(shard))}",
        ):
            load(pickled_folder, device="cpu")
    finally:
        index.unlink()
    assert not unpickled


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"weight_map": 1}', '{"weight_map": {"a": ["x.safetensors"]}}', "[" * 10**5]
)
def test_damaged_index_is_rejected(pickled_folder, text):
    index = pickled_folder / "unet" / INDEXES["unet"]
    index.write_text(text)
    try:
        with pytest.raises(InputError, match=index.name):
            load(pickled_folder, device="cpu")
    finally:
        index.unlink()


def test_model_with_sharded_safetensors_is_loaded(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path, max_shard_size="20KB")
    assert {"unet", "text_encoder"} <= {path.parent.name for path in tmp_path.glob("*/*.index.json")}
    assert fingerprint(load(tmp_path, device="cpu")) == fingerprint(tiny_pipeline)


def test_model_from_the_hub_is_checked_before_it_is_loaded(pickled_folder, tiny_folder, tiny_pipeline, monkeypatch):
    downloads = {"someone/plain": tiny_folder, "someone/pickled": pickled_folder}
    monkeypatch.setattr(DiffusionPipeline, "download", lambda name, **_: str(downloads[name]))
    loaded = load("someone/plain", device="cpu")
    assert loaded.name_or_path == "someone/plain"
    assert fingerprint(loaded) == fingerprint(tiny_pipeline)
    index = pickled_folder / "unet" / INDEXES["unet"]
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"a": "weights.bin"}}))
    try:
        with pytest.raises(InputError, match=r"must name only \.safetensors files"):
            load("someone/pickled", device="cpu")
    finally:
        index.unlink()


def test_pickle_next_to_safetensors_is_not_loaded(tiny_folder, tmp_path):
    mark, folder = tmp_path / "ran", tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    torch.save({"x": Touch(mark)}, folder / "unet" / "diffusion_pytorch_model.bin")
    load(folder, device="cpu")
    assert not mark.exists()
    torch.load(folder / "unet" / "diffusion_pytorch_model.bin", weights_only=False)
    assert mark.exists()  # loading the pickle would have run it


@pytest.mark.parametrize("where", ["tokenizer_config.json", "config.json"])
def test_metric_network_with_code_runs_none_even_if_user_agrees(tiny_folder, tmp_path, monkeypatch, where):
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    folder, mark = tmp_path / "clip", tmp_path / "ran"
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**text, "image_size": 32, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    CLIPTokenizer.from_pretrained(tiny_folder / "tokenizer").save_pretrained(folder)
    Clip.load(folder)
    (folder / "mine.py").write_text(
        f"import os\nos.system('touch {mark}')\nfrom transformers import CLIPConfig, CLIPTokenizer\n"
        "class Tokenizer(CLIPTokenizer): pass\nclass Config(CLIPConfig):\n    model_type = 'mine'\n"
    )
    changes = {
        "tokenizer_config.json": {
            "auto_map": {"AutoTokenizer": ["mine.Tokenizer", "mine.Tokenizer"]}, "tokenizer_class": "Tokenizer",
        },
        "config.json": {"auto_map": {"AutoConfig": "mine.Config"}, "model_type": "mine"},
    }  # fmt: skip
    (folder / where).write_text(json.dumps({**json.loads((folder / where).read_text()), **changes[where]}))
    for load_network in (Clip.load, Vision.load, lambda folder: load_scorer(str(folder), reference.images())):
        with contextlib.suppress(InputError):
            load_network(folder)
        assert not mark.exists()


@pytest.mark.parametrize("part", ["weights beyond the first", "a buffer"])
def test_fingerprint_changes_with_any_weight_or_buffer(tiny_folder, part):
    pipeline = load(tiny_folder, device="cpu")
    before = fingerprint(pipeline)
    assert fingerprint(load(tiny_folder, device="cpu")) == before
    if part == "a buffer":
        pipeline.unet.register_buffer("mine", torch.zeros(3))
    else:
        weight = max(pipeline.unet.parameters(), key=torch.Tensor.numel)
        weight.data.view(-1)[-1] += 1e-3
    assert fingerprint(pipeline) != before


def test_symbolic_links_in_run_are_not_followed(tiny_pipeline, tmp_path):
    run, outside, victim = tmp_path / "run", tmp_path / "outside", tmp_path / "victim"
    settings = {"prompts": ["noto red apple"], "sizes": [(64, 64)], "steps": 1, "scale_factors": (), "progress": False}
    outside.mkdir()
    victim.write_text("mine")
    run.mkdir()
    (run / ".grid.json.part").symlink_to(victim)
    (run / ".manifest.json.part").symlink_to(victim)
    sweep(tiny_pipeline, store=run, **settings)
    assert victim.read_text() == "mine"
    shutil.rmtree(run / "images")
    (run / "images").symlink_to(outside)
    with pytest.raises(InputError, match="images is a symbolic link"):
        sweep(tiny_pipeline, store=run, **settings, seeds=[1])
    assert not list(outside.iterdir())


def test_too_long_file_is_read_only_up_to_the_limit(tmp_path):
    path = tmp_path / "law.json"
    with path.open("wb") as file:
        file.truncate(3 * 2**30)
    tracemalloc.start()
    for read in (lambda: resolve(path), lambda: read_bounded(path)):
        with pytest.raises(InputError, match="longer than 64 MiB"):
            read()
    assert tracemalloc.get_traced_memory()[1] < 4 * MAX_BYTES
    tracemalloc.stop()


def test_too_large_grid_is_rejected():
    with pytest.raises(InputError, match="10,000,000,000 cells, the maximum is 10,000,000"):
        Grid(tuple(map(str, range(10**5))), ((64, 64),), tuple(range(10**5)), (resolve("original"),))
