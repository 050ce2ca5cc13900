"""Format a profile comparison as text, Markdown or JUnit XML."""

from __future__ import annotations

from collections.abc import Callable
from xml.etree import ElementTree

import pandas as pd

from entropy_probe.baselines.comparison import ProfileComparison
from entropy_probe.escape import for_markdown, for_xml, one_line
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
    summary = _summary(comparison, one_line)
    if comparison.moved.empty:
        return "\n".join(summary)
    table = _table(comparison.moved.head(MAX_ROWS), one_line).to_string(index=False)
    return "\n".join([*summary, "", table, *_omitted(comparison)])


def markdown(comparison: ProfileComparison) -> str:
    """Return a Markdown section for the summary of a CI run or a pull request.

    >>> import entropy_probe as ep
    >>> from entropy_probe.baselines import compare, profile
    >>> before = profile(ep.reference.load(), prompts=["noto dog"], sizes=[(32, 32)], seeds=range(8), steps=1)
    >>> print(markdown(compare(before, before)).splitlines()[0])
    ## Entropy of `.../reference`: no change detected
    """
    verdict = "no change detected" if comparison.same else "changed"
    title = f"## Entropy of {for_markdown(comparison.now.model)}: {verdict}"
    lines = [title, "", *(f"- {sentence}" for sentence in _summary(comparison, for_markdown))]
    if not comparison.moved.empty:
        table = _table(comparison.moved.head(MAX_ROWS), for_markdown)
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
    suite = ElementTree.Element("testsuite", name=for_xml(f"entropy of {one_line(comparison.now.model)}"))
    changes = _head_changes(comparison, one_line)
    _add_case(suite, "attention heads", changes, "the attention heads differ from the baseline")
    for (layer, kind, height, width), heads in comparison.heads.groupby(["layer", "kind", "height", "width"]):
        moved = heads[heads["moved"]]
        details = [] if moved.empty else [_table(moved, one_line).to_string(index=False)]
        name = one_line(f"{short_name(layer)}, {kind}, at {format_size((height, width))}")
        _add_case(suite, name, details, f"{len(moved)} of {len(heads)} heads moved")
    failures = len(suite.findall("testcase/failure"))
    suite.attrib.update(tests=str(len(suite)), failures=str(failures), errors="0", skipped="0")
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


Escape = Callable[[str], str]
"""A function of `escape` for names of models and layers, which can be any text."""


def _summary(comparison: ProfileComparison, escape: Escape) -> list[str]:
    before, after = comparison.baseline.settings, comparison.now.settings
    same_images = f"same {len(before.prompts) * len(before.seeds)} images"
    new_seeds = f"{len(after.seeds)} new seeds, {len(before.seeds)} seeds in the baseline"
    lines = [
        f"{len(comparison.moved)} of {len(comparison.heads)} mean entropies moved "
        f"({same_images if comparison.paired else new_seeds}). "
        f"False-alarm rate: at most {100 * comparison.level:g} %."
    ]
    lines += _head_changes(comparison, escape, MAX_ROWS)
    differences = list(map(escape, comparison.other_differences()))
    return lines + ([f"other differences: {'; '.join(differences)}"] if differences else [])


def _head_changes(comparison: ProfileComparison, escape: Escape, limit: int | None = None) -> list[str]:
    removed = [f"only in the baseline: {escape(head)}" for head in comparison.vanished[:limit]]
    return removed + [f"not in the baseline: {escape(head)}" for head in comparison.appeared[:limit]]


def _table(rows: pd.DataFrame, escape: Escape) -> pd.DataFrame:
    """Format rows of `ProfileComparison.heads` as text."""
    columns = {
        "layer": [escape(short_name(layer)) for layer in rows["layer"]],
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
    case = ElementTree.SubElement(suite, "testcase", classname="entropy_baseline", name=for_xml(name))
    if details:
        ElementTree.SubElement(case, "failure", message=message).text = for_xml("\n".join(details))
