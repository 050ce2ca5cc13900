"""Write tables as Markdown and LaTeX."""

from __future__ import annotations

import itertools

import pandas as pd

from entropy_probe.escape import one_line
from entropy_probe.reports.page import flat, is_numeric

LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "±": r"$\pm$", "²": "$^2$",
    "–": "--", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "▲": r"$\blacktriangle$", "▼": r"$\blacktriangledown$",
    "κ": r"$\kappa$", "σ": r"$\sigma$",
}  # fmt: skip
"""LaTeX of the characters that pdfLaTeX does not typeset as they are."""

MARK = "Written by entropy-probe"
"""Part of every table file of this package."""


def markdown(table: pd.DataFrame, title: str) -> str:
    """Return a table in Markdown. Columns of numbers are aligned right.

    Examples:
        >>> print(markdown(pd.DataFrame({"law": ["paper"], "drift": ["0.25"]}), "Drift"))
        <!-- Written by entropy-probe: Drift -->
        | law | drift |
        |---|---:|
        | paper | 0.25 |
        <BLANKLINE>
    """
    table = flat(table)
    align = ["---:" if numeric else "---" for numeric in _numeric(table)]
    rows = [list(table.columns), *table.itertuples(index=False, name=None)]
    lines = ["| " + " | ".join(_markdown_cell(cell) for cell in row) + " |" for row in rows]
    lines.insert(1, f"|{'|'.join(align)}|")
    return "\n".join([f"<!-- {MARK}: {title} -->", *lines, ""])


def latex(table: pd.DataFrame, title: str) -> str:
    r"""Return a table in LaTeX, for the packages booktabs and amssymb. Columns of numbers are aligned right.

    Examples:
        >>> print(latex(pd.DataFrame({"law": ["a_b"], "drift": ["-0.25"]}), "Drift"))
        % Written by entropy-probe: Drift. Needs \usepackage{booktabs,amssymb}.
        \begin{tabular}{lr}
        \toprule
        law & drift \\
        \midrule
        a\_b & $-$0.25 \\
        \bottomrule
        \end{tabular}
        <BLANKLINE>
    """
    numeric = _numeric(flat(table))
    lines = [rf"\begin{{tabular}}{{{''.join('r' if number else 'l' for number in numeric)}}}", r"\toprule"]
    if table.columns.nlevels > 1:
        lines += _latex_groups(table)
        table = table.set_axis([name for _, name in table.columns], axis=1)
    lines += [_latex_row(list(table.columns), [False] * len(numeric)), r"\midrule"]
    lines += [_latex_row(list(row), numeric) for row in table.itertuples(index=False, name=None)]
    comment = rf"% {MARK}: {one_line(title)}. Needs \usepackage{{booktabs,amssymb}}."
    return "\n".join([comment, *lines, r"\bottomrule", r"\end{tabular}", ""])


def _latex_groups(table: pd.DataFrame) -> list[str]:
    """Return the line with the titles of groups of columns, and the rules under them."""
    cells, rules, start = [], [], 1
    for group, columns in itertools.groupby(table.columns, key=lambda column: str(column[0])):
        span = len(list(columns))
        cells.append(rf"\multicolumn{{{span}}}{{c}}{{{_latex_text(group)}}}")
        rules += [rf"\cmidrule(lr){{{start}-{start + span - 1}}}"] if group else []
        start += span
    return [" & ".join(cells) + r" \\", "".join(rules)]


def _numeric(table: pd.DataFrame) -> list[bool]:
    return [place > 0 and is_numeric(table.iloc[:, place]) for place in range(table.shape[1])]


def _markdown_cell(cell: object) -> str:
    return one_line(str(cell)).replace("|", "\\|").replace("<", "&lt;")


def _latex_row(cells: list[object], numeric: list[bool]) -> str:
    texts = [
        _latex_text(one_line(str(cell))).replace("-", "$-$" if number and cell != "–" else "-")
        for cell, number in zip(cells, numeric, strict=True)
    ]
    return " & ".join(texts) + r" \\"


def _latex_text(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)
