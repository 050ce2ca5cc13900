"""The text and tables of docs/results-MODEL.md."""

import math

import numpy as np
import pandas as pd

from entropy_probe.evaluation import Outcome
from research.losses import SIZES, TRAINING_SIZE, Tables

PAGE = """# Results on `{model}`

Every number and figure on this page was measured by this command (weights {fingerprint}):

    {command}

Intervals are 95 %. The losses use {real_images} real images. Every law and size has {pairs} sampled images, with the
same prompts and seeds.

## Does entropy follow ln N?

{law}

## Which g has the minimum loss?

The denoising loss on real images of each size, relative to g = 1, with the same images, noise and timesteps for every g
(t = 0 is the clean image). The g of minimum loss is the vertex of a parabola, so it can be between the values tried.

![The factor that each size needs](results-{model}-factors.png)

![Loss against g](results-{model}-loss.png)

{best}

One g for all layers, calibrated by gradient descent and tested on held-out images. At 64 px, the training size, no
change is expected:

{one}

One g for each layer:

{layers}

## Which law keeps the entropy?

Fraction of the drift removed, at level `layer`:

{drift}

## Are the images better?

{verdict}

The bars are intervals of the difference from the original model. `yarn` does not change small sizes, so its images do
not differ there.

![Quality against size](results-{model}-quality.png)

Intervals are for each comparison individually, and so is the number of pairs that would show such a difference with a
power of 80 %. The p-value is corrected for all {comparisons} comparisons (Holm), which needs more pairs.

{quality}

## Do two networks agree?

Change of the kernel distance with two networks: the critic, which was trained on these drawings, and
EfficientNet-Lite0, which was trained on the photographs of ImageNet. {agreement}

{judges}
"""


def best_table(loss: Tables, finest_tokens: int) -> pd.DataFrame:
    """Tabulate the g of minimum loss with its interval, and the g of two laws at the finest layer.

    Args:
        loss: the loss against g.
        finest_tokens: T of the layer with most tokens.
    """
    rows = []
    for row, (height, width) in zip(loss["best"].itertuples(), SIZES, strict=True):
        curve = loss["table"]
        lowest = curve[curve["size"] == row.size].sort_values("change").iloc[0]
        ratio = height * width / (TRAINING_SIZE[0] * TRAINING_SIZE[1])
        tokens = ratio * finest_tokens
        rows.append(
            {
                "size, px": row.size,
                "N/T": f"{ratio:.3g}",
                "g of minimum loss": row.optimum,
                "change at the best g tried": f"{lowest.change:+.2%} [{lowest.low:+.2%}, {lowest.high:+.2%}]",
                "g of `paper`": f"{np.sqrt(np.log(tokens) / np.log(finest_tokens)):.2f}",
                "g of `log`": f"{np.log(tokens) / np.log(finest_tokens):.2f}",
            }
        )
    return pd.DataFrame(rows)


def changes_table(changes: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the change of the held-out loss by a calibrated law."""
    return pd.DataFrame(
        {
            "size, px": changes["size"],
            "change of the held-out loss": [
                f"{c:+.2%} [{low:+.2%}, {high:+.2%}]"
                for c, low, high in zip(changes["change"], changes["low"], changes["high"], strict=True)
            ],
            "images": changes["images"],
        }
    )


def percent_removed(drift: pd.Series) -> str:
    """Format the fraction of a drift that is removed, with its interval.

    >>> percent_removed(pd.Series({"removed": 0.5, "removed_low": 0.4, "removed_high": 0.61}))
    '50 % [40, 61]'
    """
    removed, low, high = (100 * drift[name] for name in ("removed", "removed_low", "removed_high"))
    interval = "" if math.isnan(low) else f" [{low:.0f}, {high:.0f}]"
    return f"{removed:.0f} %{interval}"


def drift_table(outcome: Outcome) -> pd.DataFrame:
    """Tabulate the fraction of the drift removed, by law (rows) and size (columns)."""
    table = outcome.table("layer")
    table = table[table["law"] != "original"]
    wide = table.assign(text=[percent_removed(row) for _, row in table.iterrows()]).pivot(
        index="law", columns="size", values="text"
    )
    return wide[list(dict.fromkeys(table["size"]))].reset_index()
