"""The power calculation of the plan, compared with simulated studies."""

import numpy as np
import pytest
from scipy import stats

from research.power import equivalence_prompts, mcnemar_prompts, table

STUDIES = 4000


def simulated(prompts, discordant, difference):
    """Return discordant pairs of both directions in simulated studies."""
    gained, lost = (discordant + difference) / 2, (discordant - difference) / 2
    counts = np.random.default_rng(0).multinomial(prompts, [gained, lost, 1 - discordant], STUDIES)
    return counts[:, 0], counts[:, 1]


@pytest.mark.parametrize("discordant", [0.1, 0.2, 0.4])
def test_mcnemar_detects_the_difference_with_the_stated_power(discordant):
    gained, lost = simulated(mcnemar_prompts(discordant), discordant, 0.05)
    p = 2 * stats.norm.sf(np.abs(gained - lost) / np.sqrt(gained + lost))
    assert np.mean(p < 0.05) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("discordant", [0.1, 0.2, 0.4])
def test_equal_laws_are_equivalent_with_the_stated_power(discordant):
    prompts = equivalence_prompts(discordant)
    gained, lost = simulated(prompts, discordant, 0.0)
    difference = (gained - lost) / prompts
    error = np.sqrt(((gained + lost) / prompts - difference**2) / prompts)
    assert np.mean(np.abs(difference) + stats.norm.isf(0.05) * error < 0.05) == pytest.approx(0.8, abs=0.03)


def test_holm_needs_more_prompts():
    frame = table()
    assert (frame["McNemar, Holm"] > frame["McNemar"]).all()
    assert (frame["TOST, Holm"] > frame["TOST"]).all()


def test_rejects_impossible_differences():
    with pytest.raises(ValueError, match=r"at most the discordant fraction, got 0.3 and 0.2"):
        mcnemar_prompts(0.2, difference=0.3)
    with pytest.raises(ValueError, match=r"inside the margin of 0.05, got 0.05"):
        equivalence_prompts(0.2, difference=0.05)
