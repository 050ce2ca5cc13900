"""A comparison for people, for pull requests and for CI servers: text, Markdown, JUnit XML."""

from __future__ import annotations

from xml.etree import ElementTree

import pandas as pd

from entropy_probe.baselines.comparison import Comparison
from entropy_probe.models import format_size, short_name

SHOWN = 20
"""Rows of a table for people; the JSON has them all."""


def text(comparison: Comparison) -> str:
    """What moved, as a plain table, worst first, under a sentence that says how many and what else differs."""
    if comparison.moved.empty:
        return "\n".join(_sentences(comparison))
    table = _table(comparison.moved.head(SHOWN)).to_string(index=False)
    return "\n".join([*_sentences(comparison), "", table, *_rest(comparison)])


def markdown(comparison: Comparison) -> str:
    """A section for the summary of a CI run or a pull request."""
    verdict = "the same" if comparison.same else "moved"
    lines = [f"## Entropy of {comparison.now.model}: {verdict}", "", *(f"- {s}" for s in _sentences(comparison))]
    if not comparison.moved.empty:
        table = _table(comparison.moved.head(SHOWN))
        rows = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
        lines += ["", *("| " + " | ".join(row) + " |" for row in rows), "", *_rest(comparison)]
    return "\n".join(lines).rstrip() + "\n"


def junit(comparison: Comparison) -> str:
    """JUnit XML: a test case for every layer at every size, and one for layers that are gone or new."""
    suite = ElementTree.Element("testsuite", name=f"entropy of {comparison.now.model}")
    changed = [f"only in the baseline: {one}" for one in comparison.vanished]
    changed += [f"not in the baseline: {one}" for one in comparison.appeared]
    _case(suite, "attention heads", changed, "other attention heads than in the baseline")
    for (layer, kind, height, width), heads in comparison.heads.groupby(["layer", "kind", "height", "width"]):
        moved = heads[heads["moved"]]
        told = [] if moved.empty else [_table(moved).to_string(index=False)]
        name = f"{short_name(layer)}, {kind}, at {format_size((height, width))}"
        _case(suite, name, told, f"{len(moved)} of {len(heads)} heads moved")
    failures = len(suite.findall("testcase/failure"))
    suite.attrib.update(tests=str(len(suite)), failures=str(failures), errors="0", skipped="0")
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _sentences(comparison: Comparison) -> list[str]:
    moved, heads = len(comparison.moved), len(comparison.heads)
    before, after = comparison.baseline.settings, comparison.now.settings
    images = f"the same {len(before.prompts) * len(before.seeds)} images"
    seeds = f"{len(after.seeds)} new seeds against {len(before.seeds)}"
    said = [
        f"{moved} of {heads} mean entropies moved ({images if comparison.paired else seeds}; "
        f"an unchanged model is said to have moved in at most {100 * comparison.level:g} % of comparisons)"
    ]
    said += [f"only in the baseline: {one}" for one in comparison.vanished[:SHOWN]]
    said += [f"not in the baseline: {one}" for one in comparison.appeared[:SHOWN]]
    differs = comparison.circumstances()
    return said + ([f"what else differs: {'; '.join(differs)}"] if differs else [])


def _table(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of `Comparison.heads` as text."""
    shown = {
        "layer": rows["layer"].map(short_name),
        "head": rows["head"].map(str),
        "size": [format_size((h, w)) for h, w in zip(rows["height"], rows["width"], strict=True)],
        "baseline": rows["baseline"].map("{:.4f}".format),
        "now": rows["now"].map("{:.4f}".format),
        "change, nats": [f"{d:+.5f} ± {se:.5f}" for d, se in zip(rows["difference"], rows["se"], strict=True)],
        "standard errors": rows["z"].map("{:+.1f}".format),
    }
    return pd.DataFrame(shown)


def _rest(comparison: Comparison) -> list[str]:
    left = len(comparison.moved) - SHOWN
    return [f"and {left} more"] if left > 0 else []


def _case(suite: ElementTree.Element, name: str, told: list[str], message: str) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname="entropy_baseline", name=name)
    if told:
        ElementTree.SubElement(case, "failure", message=message).text = "\n".join(told)
