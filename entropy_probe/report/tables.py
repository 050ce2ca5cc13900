"""The tables of the report, rounded for people, and the summary for programs."""

from __future__ import annotations

import pandas as pd

from entropy_probe.fitting import Derivation, Fit
from entropy_probe.pipelines import format_size, short_name
from entropy_probe.validation import Outcome


def fit_table(fit: Fit) -> pd.DataFrame:
    """H = a + b ln N, a row per layer."""
    rows = [
        {
            "layer": short_name(law.layer),
            "slope b": f"{law.slope:.3f} ± {law.slope_se:.3f}",
            "95 % interval": f"{law.slope_low:.3f} to {law.slope_high:.3f}",
            "intercept a, nats": f"{law.intercept:.3f}",
            "R²": f"{law.r_squared:.4f}",
            "best form": str(fit.rivals[fit.rivals["layer"] == law.layer].iloc[0]["form"]),
        }
        for law in fit.layers
    ]
    return pd.DataFrame(rows)


def kappa_table(derivation: Derivation) -> pd.DataFrame:
    """kappa per layer, and g at every measured ln(N/T)."""
    rows = []
    for row in derivation.kappa.itertuples():
        points = derivation.law.points[row.layer]
        rows.append(
            {
                "layer": short_name(row.layer),
                "κ": f"{row.kappa:.3f} ± {row.kappa_se:.3f}",
                "95 % interval": f"{row.low:.3f} to {row.high:.3f}",
                "paper's κ": f"{row.paper:.3f}",
                "g at ln(N/T)": ", ".join(f"{g:.2f} at {x:+.2f}" for x, g in points),
            }
        )
    return pd.DataFrame(rows)


def drift_table(outcome: Outcome) -> pd.DataFrame:
    """Drift of every law and size, at the three levels."""
    rows = [
        {
            "level": drift.level,
            "law": drift.law,
            "size": format_size(drift.size),
            "drift, nats": f"{drift.drift:.3f} [{drift.low:.3f}, {drift.high:.3f}]",
            "removed, %": "{:.0f} [{:.0f}, {:.0f}]".format(
                *(100 * value for value in (drift.removed, drift.removed_low, drift.removed_high))
            ),
        }
        for drift in outcome.drifts
    ]
    return pd.DataFrame(rows)


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per law, size and layer: mean entropy (nats), its standard error over prompts, variance and distance."""
    keys = ["law", "height", "width", "layer", "kind", "query_tokens", "key_tokens"]
    values = ["entropy", "logit_variance", "attention_distance"]
    by_prompt = frame.groupby([*keys, "prompt"], sort=False)[values].mean().groupby(keys, sort=False)
    table = by_prompt.mean()
    table.insert(1, "entropy_se", by_prompt["entropy"].sem())
    return table.assign(prompts=by_prompt.size()).reset_index()
