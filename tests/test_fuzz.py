"""Any text as a number, a path, a list or a setting of the command line: a value, or one line and exit code 2."""

import contextlib
import os
import shutil
import struct
import sys
import zlib

import pytest
import yaml
from diffusers import DiffusionPipeline
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from entropy_probe.cli import main as cli
from entropy_probe.cli.config import MAX_BYTES, read_config
from entropy_probe.cli.parsing import (
    check_laws,
    parse_prompts,
    parse_rows,
    parse_scale_factors,
    parse_seeds,
    parse_shard,
    parse_sizes,
)
from entropy_probe.errors import InputError
from entropy_probe.models import ImageFolder

FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NUMBERS = st.from_regex(r"[-+]?[0-9]{0,20}([.eExX,/][-+]?[0-9]{0,5}){0,3}", fullmatch=True) | st.sampled_from(
    ["nan", "inf", "-0", "1e400", "²", "٣", "9" * 5000, "0x10", "1_000", " 1", "1\n2"]
)
TEXTS = (
    st.text() | st.text(st.characters()) | NUMBERS | st.sampled_from(["a" * 300, "é" * 300, "a\0b", "~", "/", "/dev"])
)
PARSERS = (parse_sizes, parse_seeds, parse_rows, parse_shard, parse_scale_factors, check_laws)


@FUZZ
@given(TEXTS)
def test_any_text_is_parsed_or_refused_in_one_line(text):
    for parse in PARSERS:
        refused = ""
        try:
            parse(text)
        except InputError as error:
            refused = str(error)
        assert len(refused) < 1000


PATHS = {
    "a model": ["sample", "cat", "--model=TEXT"],
    "a law": ["sample", "cat", "--law=TEXT", "--device=none"],
    "a config": ["sample", "cat", "--config=TEXT", "--device=none"],
    "a run": ["fit", "--out=TEXT"],
    "a reported run": ["report", "--out=TEXT"],
    "the prompts": ["sweep", "--prompts=TEXT", "--device=none"],
    "the output": ["sweep", "--out=TEXT", "--device=none"],
    "the images": ["run", "--metrics=critic", "--real-images=TEXT", "--model=/nowhere"],
    "the networks": ["run", "--metrics=TEXT", "--real-images=/nowhere"],
    "a device": ["info", "--device=TEXT"],
    "a dtype": ["info", "--dtype=TEXT", "--model=/nowhere"],
    "a baseline": ["baseline", "diff", "TEXT", "TEXT"],
    "compared runs": ["compare", "TEXT", "/nowhere"],
}
SKIPPED = ("auto", "cpu", "none")
"""Values with which a command continues."""


@pytest.mark.parametrize("kind", PATHS)
@settings(FUZZ, max_examples=12)
@example("a" * 300)
@example("a\0b")
@example("\ud800\x1b[2J\nerror: forged")
@example("")
@given(TEXTS.filter(lambda text: not text.startswith("-") and "://" not in text and text.strip() not in SKIPPED))
def test_any_path_is_answered_in_one_line(kind, tmp_path, monkeypatch, capsys, text):
    def refuse(*_, **__):
        raise OSError("the network is unreachable")

    monkeypatch.setattr(DiffusionPipeline, "download", refuse)
    monkeypatch.chdir(tmp_path)
    arguments = [argument.replace("TEXT", text) for argument in PATHS[kind]]
    monkeypatch.setattr(sys, "argv", ["entropy-probe", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    out, err = capsys.readouterr()
    errors = [line for line in err.split("\n") if line and not line.startswith("warning: ")]
    assert (stopped.value.code, out, len(errors)) == (2, "", 1), (arguments, err)
    assert errors[0].startswith("error: ")
    assert all(character.isprintable() for character in errors[0])
    assert list(tmp_path.iterdir()) == []


YAML = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["steps", "prompts", "x"]), inner),
    max_leaves=10,
)


@FUZZ
@given(YAML.map(lambda value: yaml.safe_dump(value).encode()) | st.binary() | st.text().map(str.encode))
def test_any_config_file_is_read_or_refused_in_one_line(tmp_path, content):
    (tmp_path / "run.yaml").write_bytes(content)
    with contextlib.suppress(InputError):
        found = read_config(tmp_path / "run.yaml", {"steps", "prompts"})
        assert set(found) <= {"steps", "prompts"}
        assert all(isinstance(text, str) and len(text) <= MAX_BYTES for text in found.values())


def test_aliases_that_repeat_a_long_text_are_refused(tmp_path):
    """440 kB that would become 13 GB."""
    text = f'model: &a "{"x" * 200_000}"\nprompts: [{",".join(["*a"] * 60_000)}]\n'
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(InputError, match=r"line 2: prompts is longer than 1 MiB: remove its aliases"):
        read_config(tmp_path / "run.yaml", {"model", "prompts"})
    (tmp_path / "run.yaml").write_text("model: &a x\nprompts: [*a, y]\n")
    assert read_config(tmp_path / "run.yaml", {"model", "prompts"}) == {"model": "x", "prompts": "x\ny\n"}


@pytest.mark.parametrize("size", [8 * 2**20 + 1, 3 * 2**30])
def test_huge_file_of_prompts_is_refused_before_it_is_read(tmp_path, size):
    with (tmp_path / "prompts.txt").open("wb") as file:
        file.truncate(size)
    with pytest.raises(InputError, match=r"prompts.txt is longer than 8 MiB"):
        parse_prompts(str(tmp_path / "prompts.txt"), 8)


@pytest.fixture
def images(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "red.png")
    return tmp_path


def test_caption_that_is_not_utf8_or_not_a_file_is_refused(images):
    (images / "red.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(InputError, match=r"caption of red.png: .* not UTF-8 text at byte 3: save it as UTF-8 text"):
        ImageFolder.open(images)
    (images / "red.txt").unlink()
    os.mkfifo(images / "red.txt")
    with pytest.raises(InputError, match=r"caption of red.png: .* is not a regular file"):
        ImageFolder.open(images)


@pytest.mark.parametrize("side", [16_385, 60_000])
def test_image_of_too_many_pixels_is_refused(images, side):
    Image.new("1", (side, 8)).save(images / "red.png")
    with pytest.raises(InputError, match=rf"cannot read .*red.png as an image: it has {side} x 8 pixels"):
        ImageFolder.open(images).at((64, 64))


def test_decompression_bomb_is_refused(images):
    """An empty image of 60,000 x 60,000 pixels: a few kilobytes, 10 GB in memory."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))
    content = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    (images / "red.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    with pytest.raises(InputError, match=r"cannot read .*red.png as an image: .*3600000000 pixels"):
        ImageFolder.open(images).at((64, 64))


def test_file_that_is_not_an_image_is_refused(images):
    for content in (b"", b"\x89PNG\r\n\x1a\n", (images / "red.png").read_bytes()[:40], b"GIF89a" + bytes(100)):
        (images / "red.png").write_bytes(content)
        with pytest.raises(InputError, match=r"cannot read .*red.png as an image"):
            ImageFolder.open(images).at((64, 64))


@pytest.mark.parametrize("command", [["compare", "RUN", "OTHER"], ["baseline", "save", "MODEL", "--sizes", "32"]])
def test_empty_output_is_refused_before_anything_is_computed(command, tiny_folder, tmp_path, monkeypatch, capsys):
    named = {"RUN": tmp_path / "a", "OTHER": tmp_path / "b", "MODEL": shutil.copytree(tiny_folder, tmp_path / "m")}
    arguments = [str(named.get(word, word)) for word in command]
    monkeypatch.setattr(sys, "argv", ["entropy-probe", *arguments, "--out", ""])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: cannot write '.': give the name of a file\n"
