"""A comparison for people, for pull requests and for CI servers: text, Markdown, JUnit XML, and a figure."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from entropy_probe.pipelines import Size, format_size, short_name
from entropy_probe.regression.compare import Comparison
from entropy_probe.report.figures import INTERVAL, PALETTE, theme

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


def figure(comparison: Comparison) -> Figure:
    """A panel per size: the change of every head with its 95 % interval, layers in network order, coloured if moved."""
    heads = comparison.heads
    layers = [name for name in comparison.baseline.entropy.index.unique("layer") if name in set(heads["layer"])]
    sizes: list[Size] = sorted(
        {(int(h), int(w)) for h, w in heads[["height", "width"]].to_numpy()}, key=lambda s: s[0] * s[1]
    )
    vermilion = sns.color_palette(PALETTE)[3]
    with theme():
        made = Figure(figsize=(2 + 4 * len(sizes), min(40.0, 1.6 + 0.22 * len(layers))), layout="constrained")
        panels = made.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
        for axes, (height, width) in zip(panels, sizes, strict=True):
            here = heads[(heads["height"] == height) & (heads["width"] == width)]
            spread = (here["head"] + 1) / (here.groupby("layer")["head"].transform("max") + 2) - 0.5
            y = here["layer"].map(layers.index) + 0.8 * spread
            for chosen, colour in ((~here["moved"], "0.55"), (here["moved"], vermilion)):
                own = here[chosen]
                axes.errorbar(
                    own["difference"],
                    y[chosen],
                    xerr=INTERVAL * own["se"],
                    fmt="o",
                    markersize=3,
                    linewidth=0.8,
                    color=colour,
                )
            axes.axvline(0, color="0.3", linewidth=0.8)
            axes.set_title(f"at {format_size((height, width))} px: {here['moved'].sum()} of {len(here)} moved")
            axes.set_xlabel("change of the mean entropy, nats")
        panels[0].set_yticks(np.arange(len(layers)), [short_name(name) for name in layers], fontsize=7)
        panels[0].invert_yaxis()
    return made


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
