"""Config files: what is read, what is refused and where, and that what is written comes back."""

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from entropy_probe.cli.config import MOST_BYTES, read_config, to_yaml
from entropy_probe.errors import InputError

KNOWN = {"model", "sizes", "prompts", "seeds", "steps", "guidance-scale", "quick"}


@pytest.fixture
def read(tmp_path):
    def read(text):
        path = tmp_path / "run.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return read_config(path, KNOWN)

    return read


def test_values_are_the_texts_that_flags_would_be_given(read):
    text = "sizes: [32, 96x128]\nseeds: 010\nguidance_scale: 4\nquick: true\nmodel: 'no'\nprompts: [a red apple, '8']\n"
    assert read(text) == {
        "sizes": "32,96x128", "seeds": "010", "guidance-scale": "4", "quick": "true", "model": "no",
        "prompts": "a red apple\n8\n",
    }  # fmt: skip
    assert read("prompts: 8") == {"prompts": "8"}
    assert read("") == read("# nothing\n") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 8\nsize: 64\n", "run.yaml, line 2: there is no setting 'size', the nearest is 'sizes'"),
        ("guidence_scale: 4", "the nearest is 'guidance-scale'"),
        ("steps: 8\nsteps: 9", "line 2: steps is set a second time"),
        ("guidance_scale: 8\nguidance-scale: 9", "line 2: guidance-scale is set a second time"),
        ("steps:", "line 1: give steps a text, a number, or a list"),
        ("sizes: []", "give sizes a text"),
        ("sizes: {a: 1}", "give sizes a text"),
        ("sizes: [[32], 64]", "give sizes a text"),
        ("[1, 2]: 3", "there is no setting '?'"),
        ("- steps", "holds no settings"),
        ("steps", "holds no settings"),
        ("steps: 8\n---\nsteps: 9", "is no YAML"),
        ("steps: [8", "is no YAML"),
        ("steps: *other", "is no YAML"),
        (b"\xff\xfe\xff", "is no YAML"),
        ("sizes: " + "[" * 50_000, "is no YAML"),
        ("#" * (MOST_BYTES + 1), "longer than 1 MiB"),
    ],
)
def test_what_is_refused(read, text, message):
    with pytest.raises(InputError) as refused:
        read(text)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_nothing_in_a_file_is_made_or_run(read, tmp_path):
    bait = tmp_path / "made"
    read(f"model: !!python/object/apply:pathlib.Path.touch [{bait}]")
    assert not bait.exists()


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot read the config file .*No such file"):
        read_config(tmp_path / "run.yaml", KNOWN)


lines = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), min_size=1)


@settings(deadline=None)
@example(prompts=["a\x85b", "c\u2028d"], model="m", scale=1.0, steps=1)
@given(prompts=st.lists(lines, min_size=1), model=lines, scale=st.floats(0, 1e9), steps=st.integers(1, 1000))
def test_what_is_written_comes_back(tmp_path_factory, prompts, model, scale, steps):
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    text = to_yaml({"model": model, "prompts": prompts, "guidance-scale": scale, "steps": steps})
    path.write_text(text, encoding="utf-8", newline="")
    back = read_config(path, KNOWN)
    assert back["prompts"].split("\n")[:-1] == prompts
    assert (back["model"], float(back["guidance-scale"]), int(back["steps"])) == (model, scale, steps)
    assert yaml.safe_load(text)["prompts"] == prompts
