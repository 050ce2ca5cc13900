"""Config files: reading, refusing invalid files with their line, and reading back written settings."""

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from entropy_probe.cli.config import MAX_BYTES, read_config, to_yaml
from entropy_probe.errors import InputError

KNOWN = {"model", "sizes", "prompts", "seeds", "steps", "guidance-scale", "quick", "scale-factors"}


@pytest.fixture
def read(tmp_path):
    def read(text):
        path = tmp_path / "run.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return read_config(path, KNOWN)

    return read


def test_values_are_the_texts_that_flags_would_receive(read):
    text = "sizes: [32, 96x128]\nseeds: 010\nguidance_scale: 4\nquick: true\nmodel: 'no'\nprompts: [a red apple, '8']\n"
    assert read(text) == {
        "sizes": "32,96x128", "seeds": "010", "guidance-scale": "4", "quick": "true", "model": "no",
        "prompts": "a red apple\n8\n",
    }  # fmt: skip
    assert read("prompts: 8") == {"prompts": "8"}
    assert read("") == read("# nothing\n") == {}


def test_renamed_settings_still_work_with_a_warning(read):
    with pytest.warns(DeprecationWarning, match=r"run\.yaml, line 1: multipliers is deprecated: use scale-factors"):
        assert read("multipliers: [0.7, 1.5]") == {"scale-factors": "0.7,1.5"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 8\nsize: 64\n", "run.yaml, line 2: unknown setting 'size': did you mean 'sizes'?"),
        ("guidence_scale: 4", "did you mean 'guidance-scale'?"),
        ("steps: 8\nsteps: 9", "line 2: steps is set twice"),
        ("guidance_scale: 8\nguidance-scale: 9", "line 2: guidance-scale is set twice"),
        ("steps:", "line 1: steps must be a text, a number, or a list"),
        ("sizes: []", "sizes must be a text"),
        ("sizes: {a: 1}", "sizes must be a text"),
        ("sizes: [[32], 64]", "sizes must be a text"),
        ("[1, 2]: 3", "unknown setting '?'"),
        ("- steps", "contains no settings"),
        ("steps", "contains no settings"),
        ("steps: 8\n---\nsteps: 9", "is not valid YAML"),
        ("steps: [8", "is not valid YAML"),
        ("steps: *other", "is not valid YAML"),
        (b"\xff\xfe\xff", "is not valid YAML"),
        ("sizes: " + "[" * 50_000, "is not valid YAML"),
        ("#" * (MAX_BYTES + 1), "longer than 1 MiB"),
    ],
)
def test_refuses_invalid_file_in_one_line(read, text, message):
    with pytest.raises(InputError) as refused:
        read(text)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_reading_creates_no_objects_and_runs_no_code(read, tmp_path):
    bait = tmp_path / "made"
    read(f"model: !!python/object/apply:pathlib.Path.touch [{bait}]")
    assert not bait.exists()


def test_refuses_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"cannot read the config file .*No such file"):
        read_config(tmp_path / "run.yaml", KNOWN)


lines = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), min_size=1)


@settings(deadline=None)
@example(prompts=["a\x85b", "c\u2028d"], model="m", scale=1.0, steps=1)
@given(prompts=st.lists(lines, min_size=1), model=lines, scale=st.floats(0, 1e9), steps=st.integers(1, 1000))
def test_written_settings_are_read_back(tmp_path_factory, prompts, model, scale, steps):
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    text = to_yaml({"model": model, "prompts": prompts, "guidance-scale": scale, "steps": steps})
    path.write_text(text, encoding="utf-8", newline="")
    settings_read = read_config(path, KNOWN)
    assert settings_read["prompts"].split("\n")[:-1] == prompts
    assert (settings_read["model"], float(settings_read["guidance-scale"]), int(settings_read["steps"])) == (
        model,
        scale,
        steps,
    )
    assert yaml.safe_load(text)["prompts"] == prompts
