"""The factors of a law as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from entropy_probe.laws.bounds import factor_bound
from entropy_probe.laws.catalogue import own_law
from entropy_probe.laws.formulas import Constant
from entropy_probe.laws.site import ScalingLaw


def factors(
    law: ScalingLaw, ratios: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0), *, training_tokens: int = 1024
) -> pd.DataFrame:
    """Return the factors of a law as a table with the columns `layer`, `ratio` (N/T), `scale_factor` (g) and `bound`.

    Args:
        law: a scaling law or a derivation. If it treats all layers alike, the table has one layer, `*`.
        ratios: values of N/T.
        training_tokens: T. The factors of `paper` and `log` depend on it.

    Returns:
        The table. `bound` is `at most` or `at least` for a factor at a bound of the search, and empty for others.

    >>> from entropy_probe.laws.formulas import Kappa
    >>> factors(Kappa({"*": 0.5}), [1.0, 4.0]).round(4)
      layer  ratio  scale_factor bound
    0     *    1.0        1.0000
    1     *    4.0        1.3012
    """
    inner = own_law(law)
    numbers = [value for value in vars(inner).values() if isinstance(value, dict) and value]
    names: Iterable[str] = inner.layers if isinstance(inner, Constant) else numbers[0] if numbers else ("*",)
    rows = []
    for name in names:
        for ratio in ratios:
            tokens = max(1, round(ratio * training_tokens))
            factor = inner.scale_factor(name, tokens, training_tokens)
            rows.append((name, ratio, factor, factor_bound(law, name, tokens, training_tokens)))
    return pd.DataFrame(rows, columns=["layer", "ratio", "scale_factor", "bound"])
