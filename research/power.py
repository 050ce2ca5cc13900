"""Number of prompts that the primary tests of research/plan.md need: `python -m research.power`.

Each prompt gives one image per scale law, from the same noise, and each image a yes or no, such as "the count
is right". Two laws agree on most prompts. Only the discordant fraction, the prompts on which they differ, carries
information. The two formulas are the asymptotic ones for paired proportions:

- McNemar's test: Connor (1987), https://doi.org/10.2307/2531961.
- Equivalence (two one-sided tests, TOST) of the paired difference: Liu et al. (2002), https://doi.org/10.1002/sim.1012.
"""

from __future__ import annotations

import math

import pandas as pd
import typer
from statsmodels.stats.power import normal_sample_size_one_tail

LEVEL = 0.05
POWER = 0.8
MARGIN = 0.05
"""Equivalence margin, and the difference that McNemar's test must detect: five percentage points."""

PRIMARY_TESTS = 4
DISCORDANT = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4)


def mcnemar_prompts(discordant: float, difference: float = MARGIN, level: float = LEVEL, power: float = POWER) -> int:
    """Return the number of prompts with which McNemar's test detects a difference of two paired proportions.

    Args:
        discordant: fraction of the prompts on which the two laws differ.
        difference: difference of the two proportions.
        level: two-sided significance level.
        power: probability to detect the difference.

    Raises:
        ValueError: if the difference is not between 0 and the discordant fraction.

    Example:
        >>> mcnemar_prompts(0.2)
        626
    """
    if not 0 < difference <= discordant <= 1:
        raise ValueError(
            f"difference must be positive and at most the discordant fraction, got {difference} and {discordant}"
        )
    deviation = math.sqrt(discordant - difference**2)
    return math.ceil(normal_sample_size_one_tail(difference, power, level / 2, math.sqrt(discordant), deviation))


def equivalence_prompts(
    discordant: float, difference: float = 0.0, margin: float = MARGIN, level: float = LEVEL, power: float = POWER
) -> int:
    """Return the number of prompts with which two one-sided tests show that two paired proportions are equivalent.

    Args:
        discordant: fraction of the prompts on which the two laws differ.
        difference: true difference of the two proportions.
        margin: largest difference that counts as equivalent.
        level: level of each one-sided test.
        power: probability that both tests reject.

    Raises:
        ValueError: if the difference is not inside the margin.

    Example:
        >>> equivalence_prompts(0.2)
        686
    """
    room = margin - abs(difference)
    if room <= 0:
        raise ValueError(f"difference must be inside the margin of {margin}, got {difference}")
    deviation = math.sqrt(discordant - difference**2)
    one_sided = power if difference else 1 - (1 - power) / 2  # without a difference both tests can fail
    return math.ceil(normal_sample_size_one_tail(room, one_sided, level, deviation, deviation))


def table() -> pd.DataFrame:
    """Return the numbers of prompts per discordant fraction, without correction and at the strictest step of Holm."""
    rows = []
    for fraction in DISCORDANT:
        row: dict[str, float] = {"discordant fraction": fraction}
        for name, level in (("", LEVEL), (", Holm", LEVEL / PRIMARY_TESTS)):
            row[f"McNemar{name}"] = mcnemar_prompts(fraction, level=level)
            row[f"TOST{name}"] = equivalence_prompts(fraction, level=level)
        rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    """Print the table as Markdown."""
    frame = table()
    typer.echo("| " + " | ".join(frame.columns) + " |\n|" + "---|" * len(frame.columns))
    for values in frame.itertuples(index=False):
        typer.echo(f"| {values[0]:.2f} | " + " | ".join(f"{n:,.0f}" for n in values[1:]) + " |")


if __name__ == "__main__":
    typer.run(main)
