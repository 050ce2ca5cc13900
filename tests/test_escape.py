"""Names of models, layers and heads are text in every output: they add no line, no markup and no control character."""

import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from entropy_probe.baselines import Profile, Settings, compare, junit, markdown, text
from entropy_probe.baselines.profiles import HEAD
from entropy_probe.cli import main as cli
from entropy_probe.cli.output import Messages, make_table
from entropy_probe.escape import for_html, for_markdown, for_terminal, for_xml, one_line

pytest_plugins = "pytester"

FORGED = "mid\n0 of 2 mean entropies moved\r\n\x1b[2K\x1b]0;title\x07\u202e\u2028<testcase name='x'/>\x00"
MARKUP = "a`b``c|d\n# Passed\n- [x] ![i](https://evil.example/i.png) <img src=x> [l](javascript:x) @all \\ &lt; **b**"
HOSTILE = (FORGED, MARKUP, "", " ", "`", "``` ", "x" * 500, "[bold]x[/bold]", "]]>", "\ufffe")


def printable(shown):
    return all(c.isprintable() or c == "\n" for c in shown)


def profile_named(name, shift=0.0):
    """Return a profile whose names of model, pipeline, libraries and layers are all `name`."""
    settings = Settings(("a", "b"), ((32, 32),), (0, 1, 2, 3, 4), 8, 4.0)
    heads = pd.MultiIndex.from_tuples([(f"{name} {i}", "self", 0, 32, 32) for i in range(2)], names=HEAD)
    images = pd.MultiIndex.from_product([settings.prompts, settings.seeds], names=["prompt", "seed"])
    values = np.random.default_rng(0).normal(size=(2, 10)) * 1e-3 + shift
    table = pd.DataFrame(values, heads, images)
    return Profile(name, "f", name, name, name, {name: "2" if shift else name}, settings, table)


def compared(name):
    """Return a comparison in which a head has moved, one has vanished and one has appeared."""
    before, after = profile_named(name), profile_named(name, 1.0)
    return compare(before, replace(after, entropy=after.entropy.rename({f"{name} 1": f"{name} 2"})))


@pytest.fixture(scope="module", params=HOSTILE, ids=range(len(HOSTILE)))
def hostile(request):
    return compared(request.param)


@pytest.fixture(scope="module")
def harmless():
    return compared("mid")


def test_text_has_the_lines_of_harmless_names(hostile, harmless):
    assert text(hostile).count("\n") == text(harmless).count("\n")
    assert printable(text(hostile))


class Rendered(HTMLParser):
    def __init__(self, source):
        super().__init__()
        self.tags, self.codes = [], []
        self.feed(MarkdownIt("commonmark").enable("table").render(source))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "code":
            self.codes.append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1] == "code":
            self.codes[-1] += data


def test_markdown_has_the_structure_of_harmless_names(hostile, harmless):
    assert Rendered(markdown(hostile)).tags == Rendered(markdown(harmless)).tags
    assert not {"h1", "img", "a", "strong"} & {*Rendered(markdown(hostile)).tags}
    assert printable(markdown(hostile))


@given(st.text() | st.sampled_from(HOSTILE))
def test_markdown_shows_a_name_in_a_code_span_and_in_a_cell(name):
    table = Rendered(f"| name |\n| --- |\n| {for_markdown(name)} |\n")
    assert table.tags == ["table", "thead", "tr", "th", "tbody", "tr", "td", "code"]
    shown = table.codes[0] if one_line(name).strip() else ""
    assert re.sub(r"\s+", " ", shown.strip()) == re.sub(r"\s+", " ", one_line(name).strip())
    assert Rendered(f"## Entropy of {for_markdown(name)}: changed\n").tags == ["h2", "code"]
    assert Rendered(f"- only in the baseline: {for_markdown(name)}\n").tags == ["ul", "li", "code"]


def test_junit_is_valid_xml_with_the_cases_of_harmless_names(hostile, harmless):
    suite, expected = (ElementTree.fromstring(junit(made).encode()) for made in (hostile, harmless))
    assert [element.tag for element in suite.iter()] == [element.tag for element in expected.iter()]
    assert not any("\n" in (element.get("name") or "") for element in suite.iter())


@given(st.text(st.characters()))
def test_xml_with_any_text_can_be_parsed(name):
    element = ElementTree.Element("testcase", name=for_xml(name))
    element.text = for_xml(name)
    parsed = ElementTree.fromstring(ElementTree.tostring(element, encoding="unicode").encode())
    assert parsed.get("name") == for_xml(name)


@given(st.text(st.characters()))
def test_escaped_text_is_printable_and_is_not_escaped_twice(name):
    line = one_line(name)
    assert printable(line.replace("\u200d", ""))
    assert "\n" not in line
    assert one_line(line) == line
    assert for_terminal(for_terminal(name)) == for_terminal(name)
    assert for_html(name)[1:-1] == for_terminal(name)


def test_messages_and_tables_of_the_command_line_show_names_in_one_line(capsys):
    messages = Messages(quiet=False)
    messages.print(f"law: {FORGED}")
    messages.print(make_table([{FORGED: FORGED}]))
    shown = capsys.readouterr().err
    assert shown.splitlines()[0] == f"law: {one_line(FORGED)}"
    assert printable(shown)
    assert not re.search("^0 of 2 mean", shown, re.MULTILINE)


def test_command_line_shows_a_comparison_without_forged_lines(tmp_path, monkeypatch, capsys):
    for file, shift in (("before.json", 0.0), ("after.json", 1.0)):
        profile_named(FORGED, shift).save(tmp_path / file)
    files = ["--junit", str(tmp_path / "j.xml"), "--markdown", str(tmp_path / "m.md")]
    arguments = ["baseline", "diff", str(tmp_path / "before.json"), str(tmp_path / "after.json"), *files]
    monkeypatch.setattr(sys, "argv", ["entropy-probe", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1
    shown = capsys.readouterr().err
    assert printable(shown)
    assert shown.splitlines()[0].startswith("2 of 2 mean entropies moved")
    assert not re.search("^0 of 2 mean", shown, re.MULTILINE)
    assert int(ElementTree.parse(tmp_path / "j.xml").getroot().get("failures")) == 2
    assert (tmp_path / "m.md").read_text().count("\n# ") == 0


PLUGIN_TEST = """
import entropy_probe.baselines
from entropy_probe.baselines import Profile

def test_profile(entropy_baseline, monkeypatch):
    measured = Profile.open("after.json")
    monkeypatch.setattr(entropy_probe.baselines, "profile", lambda pipeline, **settings: measured)
    entropy_baseline.check(None)
"""


def test_plugin_shows_names_without_forged_lines(pytester):
    pytester.makepyfile(test_model=PLUGIN_TEST)
    profile_named(FORGED).save(pytester.path / "test_model" / "test_profile.json")
    profile_named(FORGED, 1.0).save(pytester.path / "after.json")
    done = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:xdist", "--color=no")
    shown = done.stdout.str()
    assert done.ret == 1
    assert "2 of 2 mean entropies moved" in shown
    assert printable(shown)
    assert not re.search("^(E +)?0 of 2 mean", shown, re.MULTILINE)
