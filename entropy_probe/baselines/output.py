"""Format a profile comparison as text, Markdown or JUnit XML."""

from __future__ import annotations

from xml.etree import ElementTree

import pandas as pd

from entropy_probe.baselines.comparison import ProfileComparison
from entropy_probe.models import format_size, short_name

MAX_ROWS = 20
"""Maximum number of rows in a table for people. The JSON contains all rows."""


def text(comparison: ProfileComparison) -> str:
    """Return a summary and a plain table of the heads that moved, largest |z| first.

    >>> import entropy_probe as ep
    >>> from entropy_probe.baselines import compare, profile
    >>> before = profile(ep.reference.load(), prompts=["noto dog"], sizes=[(32, 32)], seeds=range(8), steps=1)
    >>> print(text(compare(before, before)))
    0 of 104 mean entropies moved (same 8 images). False-alarm rate: at most 1 %.
    """
    if comparison.moved.empty:
        return "\n".join(_summary(comparison))
    table = _table(comparison.moved.head(MAX_ROWS)).to_string(index=False)
    return "\n".join([*_summary(comparison), "", table, *_omitted(comparison)])


def markdown(comparison: ProfileComparison) -> str:
    """Return a Markdown section for the summary of a CI run or a pull request.

    >>> import entropy_probe as ep
    >>> from entropy_probe.baselines import compare, profile
    >>> before = profile(ep.reference.load(), prompts=["noto dog"], sizes=[(32, 32)], seeds=range(8), steps=1)
    >>> print(markdown(compare(before, before)).splitlines()[0])
    ## Entropy of .../reference: no change detected
    """
    verdict = "no change detected" if comparison.same else "changed"
    lines = [f"## Entropy of {comparison.now.model}: {verdict}", "", *(f"- {s}" for s in _summary(comparison))]
    if not comparison.moved.empty:
        table = _table(comparison.moved.head(MAX_ROWS))
        rows = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
        lines += ["", *("| " + " | ".join(row) + " |" for row in rows), "", *_omitted(comparison)]
    return "\n".join(lines).rstrip() + "\n"


def junit(comparison: ProfileComparison) -> str:
    """Return JUnit XML: one test case per layer and size, and one for added and removed heads.

    >>> import entropy_probe as ep
    >>> from entropy_probe.baselines import compare, profile
    >>> before = profile(ep.reference.load(), prompts=["noto dog"], sizes=[(32, 32)], seeds=range(8), steps=1)
    >>> ElementTree.fromstring(junit(compare(before, before))).attrib["failures"]
    '0'
    """
    suite = ElementTree.Element("testsuite", name=f"entropy of {comparison.now.model}")
    _add_case(suite, "attention heads", _head_changes(comparison), "the attention heads differ from the baseline")
    for (layer, kind, height, width), heads in comparison.heads.groupby(["layer", "kind", "height", "width"]):
        moved = heads[heads["moved"]]
        details = [] if moved.empty else [_table(moved).to_string(index=False)]
        name = f"{short_name(layer)}, {kind}, at {format_size((height, width))}"
        _add_case(suite, name, details, f"{len(moved)} of {len(heads)} heads moved")
    failures = len(suite.findall("testcase/failure"))
    suite.attrib.update(tests=str(len(suite)), failures=str(failures), errors="0", skipped="0")
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _summary(comparison: ProfileComparison) -> list[str]:
    before, after = comparison.baseline.settings, comparison.now.settings
    same_images = f"same {len(before.prompts) * len(before.seeds)} images"
    new_seeds = f"{len(after.seeds)} new seeds, {len(before.seeds)} seeds in the baseline"
    lines = [
        f"{len(comparison.moved)} of {len(comparison.heads)} mean entropies moved "
        f"({same_images if comparison.paired else new_seeds}). "
        f"False-alarm rate: at most {100 * comparison.level:g} %."
    ]
    lines += _head_changes(comparison, MAX_ROWS)
    differences = comparison.other_differences()
    return lines + ([f"other differences: {'; '.join(differences)}"] if differences else [])


def _head_changes(comparison: ProfileComparison, limit: int | None = None) -> list[str]:
    removed = [f"only in the baseline: {head}" for head in comparison.vanished[:limit]]
    return removed + [f"not in the baseline: {head}" for head in comparison.appeared[:limit]]


def _table(rows: pd.DataFrame) -> pd.DataFrame:
    """Format rows of `ProfileComparison.heads` as text."""
    columns = {
        "layer": rows["layer"].map(short_name),
        "head": rows["head"].map(str),
        "size": [format_size((h, w)) for h, w in zip(rows["height"], rows["width"], strict=True)],
        "baseline": rows["baseline"].map("{:.4f}".format),
        "now": rows["now"].map("{:.4f}".format),
        "change, nats": [f"{d:+.5f} ± {se:.5f}" for d, se in zip(rows["difference"], rows["se"], strict=True)],
        "standard errors": rows["z"].map("{:+.1f}".format),
    }
    return pd.DataFrame(columns)


def _omitted(comparison: ProfileComparison) -> list[str]:
    count = len(comparison.moved) - MAX_ROWS
    return [f"and {count} more"] if count > 0 else []


def _add_case(suite: ElementTree.Element, name: str, details: list[str], message: str) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname="entropy_baseline", name=name)
    if details:
        ElementTree.SubElement(case, "failure", message=message).text = "\n".join(details)
