"""The page and the files beside it."""

import json
import re
from html.parser import HTMLParser

import pandas as pd
import pytest

from entropy_probe.errors import InputError
from entropy_probe.fitting import derive_measured, fit
from entropy_probe.report import entropy_maps, report
from entropy_probe.sweep import sweep
from entropy_probe.validation import validate_sweep

HOSTILE = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Collects ids, tags, and everything that would be fetched."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.tags, self.links = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "srcset", "data"):
                self.links.append(value)


@pytest.fixture(scope="module")
def sampled(tiny_pipeline, tmp_path_factory):
    return sweep(
        tiny_pipeline, prompts=[HOSTILE, "flat pizza"], sizes=[(64, 64), (32, 48), (96, 96)], seeds=[0], steps=2,
        guidance_scale=4.0, store=tmp_path_factory.mktemp("runs") / "run", progress=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def full(sampled):
    derivation = derive_measured(sampled, rounds=1, progress=False)
    outcome = validate_sweep(sampled, ["paper", derivation.law], progress=False)
    maps = entropy_maps(sampled, derivation.law)
    return report(sampled, None, derivation.law, outcome, derivation=derivation, entropy_maps=maps, command="test --x")


def test_the_page_is_whole_and_asks_nothing_of_the_outside(full):
    page = Page(full.html())
    assert page.tags.count("svg") == 8
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert not re.search(r"@import|url\((?!#)", full.html())


def test_hostile_prompts_are_shown_not_run(full):
    assert HOSTILE not in full.html()
    assert "&lt;script&gt;alert(1)" in full.html()


def test_numbers_on_the_page_are_those_of_the_tables(full):
    text = full.html()
    for law in full.fit.layers:
        assert f"{law.slope:.3f} ± {law.slope_se:.3f}" in text
    for drift in full.outcome.drifts:
        assert f"{drift.drift:.3f} [{drift.low:.3f}, {drift.high:.3f}]" in text
    assert "test --x" in text


def test_the_files_agree(full, tmp_path):
    path = full.save(tmp_path / "report.html")
    assert path.read_text() == full.html()
    records = pd.read_parquet(tmp_path / "records.parquet")
    pd.testing.assert_frame_equal(records, full.outcome.sweep.frame())
    summary = pd.read_csv(tmp_path / "summary.csv")
    one = summary.iloc[0]
    own = records[
        (records[["law", "height", "width", "layer"]] == one[["law", "height", "width", "layer"]]).all(axis=1)
    ]
    assert own["entropy"].mean() == pytest.approx(one["entropy"], rel=1e-5)
    facts = json.loads((tmp_path / "report.json").read_text())
    assert facts["verdict"] == full.verdict()
    assert facts["fit"]["layers"][0]["slope"] == full.fit.layers[0].slope
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "records.parquet",
        "report.html",
        "report.json",
        "summary.csv",
    ]


def test_what_was_not_run_is_left_out_and_said(sampled):
    alone = report(sampled)
    assert "no law was sampled" in alone.html()
    assert len(alone.verdict()) < 5
    assert alone.html() == report(sampled, fit(sampled)).html()


def test_a_folder_that_cannot_be_written_is_refused(sampled, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        report(sampled).save(tmp_path / "file" / "report.html")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_entropy_maps_lie_on_the_image(full, sampled):
    assert [(m.size, m.law) for m in full.entropy_maps] == [
        ((64, 64), "original"), ((96, 96), "original"), ((96, 96), "measured"),
    ]  # fmt: skip
    assert full.entropy_maps[1].values.shape == (24, 24)
