"""Edited JSON files end in a result or in an InputError of one line: `python -m benchmarks.json_edits` counts them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.json_edits import count_edits, edits, files
from entropy_probe import reference
from entropy_probe.baselines import Profile, ProfileComparison
from entropy_probe.errors import InputError
from entropy_probe.estimation import Calibration, Derivation, Fit
from entropy_probe.evaluation import LossCurve, Quality
from entropy_probe.laws import from_json
from entropy_probe.models import SamplingSettings
from entropy_probe.runs import Grid, Manifest
from entropy_probe.strict_json import from_strict_json

EDITS = 12
"""Edits of each file, chosen at random with a fixed seed."""


@pytest.fixture(scope="module")
def all_files(tiny_pipeline, tmp_path_factory):
    return files(tiny_pipeline, reference.images()[::70], tmp_path_factory.mktemp("edits"))


@pytest.mark.slow
def test_edited_files_are_read_or_refused_in_one_line(all_files):
    counts = [count_edits(file.name, file.content, file.read, EDITS) for file in all_files]
    assert [(count.name, count.faults) for count in counts if count.faults] == []
    assert all(count.read + count.refused == count.edits == EDITS for count in counts)
    assert all(count.refused for count in counts)


def test_every_value_is_edited_in_every_way():
    document = {"a": [1, {"b": None}], "c": "x"}
    names = [name for name, _ in edits(document)]
    assert len(names) == len(set(names))
    for path in ("('a',)", "('a', 0)", "('a', 1, 'b')", "('c',)"):
        assert {f"{path} deleted", f"{path} in a list", f"{path} = None", f"{path} = []"} <= set(names)
    assert document == {"a": [1, {"b": None}], "c": "x"}  # the edits are copies
    assert all(edited != document for name, edited in edits(document) if "=" not in name)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)
READERS = (
    from_json, Derivation.from_json, Calibration.from_json, Fit.from_json, Quality.from_json, LossCurve.from_json,
    Profile.from_json, Grid.from_json, Manifest.from_json, lambda text: from_strict_json(SamplingSettings, text),
    lambda text: ProfileComparison.from_json(text, None, None),
)  # fmt: skip


@settings(deadline=None)
@given(JSON.map(json.dumps) | st.text() | st.integers(1, 10**5).map(lambda depth: '{"law":' * depth))
def test_no_other_text_is_read(content):
    for read in READERS:
        with pytest.raises(InputError) as refusal:
            read(content)
        assert "\n" not in str(refusal.value)
