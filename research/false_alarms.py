"""How often the regression test cries wolf, and what it catches: writes docs/regression.md and its figure.

On the bundled UNet, with the settings that `entropy-probe baseline save` has by default. Everything sampled is kept in
the work folder, from which a second run goes on. Run as `python -m research.false_alarms`; needs peft and torchao.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from scipy import stats
from torch import nn

import entropy_probe as ep
from entropy_probe.baselines import Profile, ProfileComparison, compare, profile
from entropy_probe.baselines.profiles import PROMPTS, SEEDS
from entropy_probe.models import quiet_libraries
from entropy_probe.plots.baselines import figure
from entropy_probe.reference import prompts
from entropy_probe.runs import versions

LEVELS = (0.05, 0.01)
RERUNS = 100
POOL = 100
"""Seeds that re-runs draw theirs from."""

ROUNDED = 50
"""Seeds that are sampled again with other rounding."""

SCALES = (1.2, 1.1, 1.05, 1.02, 1.01, 1.002, 1.0005, 1.0001)
STRENGTHS = (0.3, 0.1, 0.03, 0.01)
SHOWN = "attention scale +5 %"
"""The change whose figure is on the page."""

SETTINGS: dict[str, Any] = dict(
    prompts=prompts()[:PROMPTS], sizes=((32, 32), (64, 64)), steps=8, guidance_scale=4.0
)  # fmt: skip

Change = Callable[[Any], Any]
"""Takes a pipeline of its own, and returns it changed."""


def self_attention(pipe: Any, only: str = "") -> Iterator[nn.Module]:
    return (m for name, m in pipe.unet.named_modules() if name.endswith("attn1") and name.startswith(only))


def scaled(factor: float, only: str = "") -> Change:
    """A wrong scale of the softmax of self-attention: the same as queries that are so much longer."""

    def change(pipe: Any) -> Any:
        for attention in self_attention(pipe, only):
            attention.to_q.weight.data *= factor
        return pipe

    return change


def with_lora(strength: float) -> Change:
    """A random LoRA of rank 4 on every attention projection, merged; at strength 1 it is as large as the weights."""

    def change(pipe: Any) -> Any:
        from peft import LoraConfig

        torch.manual_seed(0)
        projections = ["to_q", "to_k", "to_v", "to_out.0"]
        pipe.unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=projections, init_lora_weights=False))
        for module in pipe.unet.modules():
            if hasattr(module, "lora_A"):
                delta = module.get_delta_weight("default").detach()
                module.lora_B["default"].weight.data *= float(module.base_layer.weight.norm() / delta.norm())
        pipe.unet.fuse_lora(lora_scale=strength)
        pipe.unet.unload_lora()
        return pipe

    return change


def weights_in_8_bits(pipe: Any) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(pipe.unet, Int8WeightOnlyConfig())
    return pipe


def all_in_8_bits(pipe: Any) -> Any:
    torch.ao.quantization.quantize_dynamic(pipe.unet, {nn.Linear}, dtype=torch.qint8, inplace=True)
    return pipe


CHANGES: dict[str, Change] = {
    "none: run again": lambda pipe: pipe,
    "bfloat16": lambda pipe: pipe.to(torch.bfloat16),
    "UNet's linear layers: weights in 8 bits (torchao)": weights_in_8_bits,
    "UNet's linear layers: weights and inputs in 8 bits (torch)": all_in_8_bits,
    "attention scale +5 % in one layer, the mid block's first": scaled(
        1.05, "mid_block.attentions.0.transformer_blocks.0"
    ),
    **{f"attention scale +{100 * (factor - 1):.2g} %": scaled(factor) for factor in SCALES},
    **{f"LoRA merged at {strength:g}": with_lora(strength) for strength in STRENGTHS},
}

TEXT = """# Baselines: detect changes of a model

A profile is the mean attention entropy of every head at every size, for self-attention and cross-attention, image by
image. A baseline is a profile in a JSON file under version control. `python -m research.false_alarms` generates this
page.

## With pytest

<!-- compiled only: it is a test -->
```python
def test_profile(entropy_baseline):
    entropy_baseline.check(pipe)  # takes prompts, sizes, seeds, steps, guidance_scale
```

The first run writes `test_model/test_profile.json` next to `test_model.py` and fails with a message that says so.
Commit this file. Later runs compare with it. A failure lists the changed heads, sorted by standard errors, and names
a figure and the new profile. `pytest --entropy-regen` rewrites the baseline. The fixture is installed with the
package. If no test uses it, it imports nothing.

## In any CI

    entropy-probe baseline save  MODEL --out FILE
    entropy-probe baseline check MODEL FILE
    entropy-probe baseline diff  FILE FILE

`save` accepts `--sizes --prompts --seeds --steps --guidance-scale --device --dtype`. `check` samples with the
settings of the baseline. Its exit code is 0 for unchanged, 1 for changed and 2 for bad input. With the same seeds it
compares image by image, which detects the smallest changes. `--seeds` sets new seeds, at least five for each profile.
`check` and `diff` write `--junit FILE.xml` and `--markdown FILE.md`, and `--json` prints every head.

## Decision rule

You do not set a tolerance. A permutation test exchanges images between the two runs. It counts how often the largest
absolute z score of all heads and sizes is at least as large as the observed one. The false-alarm rate is therefore 1
% for all heads together.

With the same seeds, images are exchanged one by one. With new seeds, all images of a seed are exchanged together,
because a seed gives all prompts the same noise. Mean differences below 1e-5 nats, the accuracy of the measurement,
are ignored. The implementation is `entropy_probe/baselines/comparison.py`.

## False alarms

The bundled UNet, {heads} mean entropies: {prompts} prompts, sizes 32 and 64 px, 8 steps, guidance 4.

{alarms}

A repeated run is a group of five seeds ({images} images per size). The groups come from {pool} seeds that were
sampled once ({rounded} for "other rounding"). When all seeds have been used, they are shuffled and grouped again.
"Other rounding" means the same seeds without oneDNN, in batches of another size.

With five seeds per run, there are 252 possible exchanges, and 2 of them reach the maximum. A level of 1 % is
therefore actually 0.8 %. Brackets are 95 % intervals that treat the comparisons as independent. Comparisons from
different shuffles are not fully independent. If other rounding changes less than the accuracy of the measurement, the
limit of 1e-5 nats prevents alarms.

## Detected changes

Each change was run once, with seeds 0 to 4. *Same seeds* compares it with a run of the unchanged model with these
seeds. *New seeds* compares it with each of {groups} runs of the unchanged model with five other seeds, and with one
run with all {rest} other seeds. In the first row, these counts are false alarms: some of the {groups} runs differ
from seeds 0 to 4 by chance.

{changes}

![Heads whose entropy changed when the attention scale was wrong by 5 %](regression.png)

- With the same seeds, the smallest wrong scale of all self-attention that was detected is {caught}. With five new
  seeds, it is {caught_new}, compared with every baseline. Use the same seeds for a baseline.
- A change that raises an entropy in some images as often as it lowers it in others counts as rounding. With the same
  seeds, only a change of a mean is detected.
- The LoRA is random, of rank 4, on all attention projections. At strength 1 it would be as large as the weights. A
  trained LoRA changes the weights in other directions.

Measured with {versions}, float32 unless stated otherwise, on a CPU with one thread.
"""


def sampled(work: Path, name: str, seeds: int, batch: int) -> Profile:
    """Many seeds of the unchanged model, one sweep."""
    made = ep.sweep(
        ep.reference.load(device="cpu"),
        **SETTINGS,
        seeds=range(seeds),
        scale_factors=(),
        batch=batch,
        store=work / name,
        model="reference",
    )
    return Profile.of(made)


def changed(work: Path, name: str, change: Change) -> Profile:
    path = work / f"{re.sub('[^a-z0-9.]+', '-', name.lower())}.json"
    if not path.exists():
        pipe = change(ep.reference.load(device="cpu"))
        profile(pipe, **SETTINGS, seeds=SEEDS, model="reference", progress=True).save(path)
    return Profile.open(path)


def of_seeds(whole: Profile, seeds: Any) -> Profile:
    """A part of a profile: the images of some seeds."""
    chosen = tuple(int(seed) for seed in seeds)
    images = [(prompt, seed) for prompt in whole.settings.prompts for seed in chosen]
    return replace(whole, settings=replace(whole.settings, seeds=chosen), entropy=whole.entropy[images])


def shuffled(seeds: int, count: int) -> Iterator[np.ndarray]:
    """`count` groups of as many seeds as a baseline has; none of them twice until all have had their turn."""
    generator = np.random.default_rng(0)
    while count > 0:
        groups = generator.permutation(seeds).reshape(-1, len(SEEDS))[:count]
        yield from groups
        count -= len(groups)


def rate(comparisons: list[ProfileComparison], level: float) -> str:
    alarms, count = sum(c.heads["p"].min() <= level for c in comparisons), len(comparisons)
    interval = stats.binomtest(int(alarms), count).proportion_ci()
    return f"{alarms} of {count} [{interval.low:.1%}, {interval.high:.1%}]"


def false_alarms(pool: Profile, rounded: Profile) -> str:
    """False alarms at both levels, as Markdown."""
    groups = list(shuffled(POOL, 2 * RERUNS))
    new = [compare(of_seeds(pool, a), of_seeds(pool, b)) for a, b in zip(groups[::2], groups[1::2], strict=True)]
    same = [compare(of_seeds(pool, g), of_seeds(rounded, g)) for g in shuffled(ROUNDED, RERUNS)]
    largest = max(float(c.heads["difference"].abs().max()) for c in same)
    rows = {"new seeds": new, f"same seeds, other rounding (changes of up to {largest:.1g} nats)": same}
    lines = [f"| repeated runs | {' | '.join(f'alarms at {level:.0%}' for level in LEVELS)} |", "|---|---|---|"]
    lines += [f"| {name} | {' | '.join(rate(found, level) for level in LEVELS)} |" for name, found in rows.items()]
    return "\n".join(lines)


def caught(name: str, now: Profile, baseline: Profile, pool: Profile) -> dict[str, Any]:
    """What a comparison with the same seeds, and those with new ones, say of a change."""
    same = compare(baseline, now)
    others = [seed for seed in pool.settings.seeds if seed not in SEEDS]
    groups = np.array(others).reshape(-1, len(SEEDS))
    new = sum(not compare(of_seeds(pool, group), now).same for group in groups)
    rest = compare(of_seeds(pool, others), now)
    worst = same.heads.iloc[0]
    return {
        "change": name,
        "same seeds": "moved" if not same.same else "the same",
        "heads moved": f"{len(same.moved)} of {len(same.heads)}",
        "largest change, nats": f"{same.heads['difference'].abs().max():.2g}",
        "worst, standard errors": f"{worst['z']:+.1f}",
        "p": f"{worst['p']:.2g}",
        "5 new seeds": f"{new} of {len(groups)}",
        f"heads moved against {len(others)} seeds": f"{len(rest.moved)} of {len(rest.heads)}",
    }


def smallest(table: pd.DataFrame, found: pd.Series) -> str:
    """The smallest wrong scale of all self-attention that was found."""
    names = [f"attention scale +{100 * (factor - 1):.2g} %" for factor in SCALES]
    own = [name for name in names if found[table["change"] == name].all()]
    return own[-1].removeprefix("attention scale +") if own else "none of those tried"


def as_markdown(table: pd.DataFrame) -> str:
    rows = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main(
    work: Annotated[Path, typer.Option(help="Folder of what was sampled.")] = Path("entropy-runs/regression"),
    other: Annotated[list[Path] | None, typer.Option(help="Baselines saved under other versions of diffusers.")] = None,
    out: Annotated[Path, typer.Option(help="Where regression.md and its figure are written.")] = Path("docs"),
) -> None:
    """Sample, compare and write."""
    torch.set_num_threads(1)
    quiet_libraries()
    baseline = changed(work, "baseline", lambda pipe: pipe)
    runs = {name: changed(work, name, change) for name, change in CHANGES.items()}
    kept = [Profile.open(path) for path in other or []]
    runs |= {f"diffusers {one.versions['diffusers']}": one for one in kept}
    pool = sampled(work, "pool", POOL, batch=8)
    with torch.backends.mkldnn.flags(enabled=False):
        rounded = sampled(work, "rounding", ROUNDED, batch=3)
    table = pd.DataFrame([caught(name, run, baseline, pool) for name, run in runs.items()])
    figure(compare(baseline, runs[SHOWN])).savefig(out / "regression.png", dpi=80)
    groups = POOL // len(SEEDS) - 1
    every = table["5 new seeds"] == f"{groups} of {groups}"
    page = TEXT.format(
        heads=len(baseline.entropy),
        prompts=PROMPTS,
        images=PROMPTS * len(SEEDS),
        alarms=false_alarms(pool, rounded),
        pool=POOL,
        rounded=ROUNDED,
        groups=groups,
        rest=POOL - len(SEEDS),
        changes=as_markdown(table),
        caught=smallest(table, table["same seeds"] == "moved"),
        caught_new=smallest(table, every),
        versions=", ".join(f"{name} {number}" for name, number in versions().items()),
    )
    (out / "regression.md").write_text(page)
    print(f"written to {out / 'regression.md'}")


if __name__ == "__main__":
    typer.run(main)
