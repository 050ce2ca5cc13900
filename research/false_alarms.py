"""Measure the false-alarm rate and the sensitivity of entropy baselines: `python -m research.false_alarms`.

It samples the bundled UNet with the default settings of `entropy-probe baseline save`. It writes docs/regression.md and
its figure. Rerun the same command to resume. Needs peft and torchao; half an hour on one core.
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
from entropy_probe.plots import profile_changes
from entropy_probe.reference import prompts
from entropy_probe.runs import versions
from research.storage import markdown

LEVELS = (0.05, 0.01)
RERUNS = 100
POOL = 100
"""Number of seeds from which reruns take theirs."""

ROUNDED = 50
"""Number of seeds that are sampled again with other rounding."""

SCALES = (1.2, 1.1, 1.05, 1.02, 1.01, 1.002, 1.0005, 1.0001)
STRENGTHS = (0.3, 0.1, 0.03, 0.01)
SHOWN = "attention scale +5 %"
"""The change of the figure on the page."""

SETTINGS: dict[str, Any] = dict(
    prompts=prompts()[:PROMPTS], sizes=((32, 32), (64, 64)), steps=8, guidance_scale=4.0
)  # fmt: skip

Change = Callable[[Any], Any]
"""Modifies a pipeline and returns it."""


def self_attention(pipe: Any, only: str = "") -> Iterator[nn.Module]:
    """Yield the self-attention modules whose name starts with `only`."""
    return (m for name, m in pipe.unet.named_modules() if name.endswith("attn1") and name.startswith(only))


def with_scale(factor: float, only: str = "") -> Change:
    """Return a change that multiplies the softmax scale of self-attention, by means of the query projection."""

    def change(pipe: Any) -> Any:
        for attention in self_attention(pipe, only):
            attention.to_q.weight.data *= factor
        return pipe

    return change


def with_lora(strength: float) -> Change:
    """Return a change that merges a random LoRA of rank 4 into every attention projection.

    At strength 1 it has the same norm as the weights.
    """

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
    """Quantize the weights of the linear layers with torchao."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(pipe.unet, Int8WeightOnlyConfig())
    return pipe


def all_in_8_bits(pipe: Any) -> Any:
    """Quantize weights and inputs of the linear layers with torch."""
    torch.ao.quantization.quantize_dynamic(pipe.unet, {nn.Linear}, dtype=torch.qint8, inplace=True)
    return pipe


CHANGES: dict[str, Change] = {
    "none: rerun": lambda pipe: pipe,
    "bfloat16": lambda pipe: pipe.to(torch.bfloat16),
    "UNet's linear layers: weights in 8 bits (torchao)": weights_in_8_bits,
    "UNet's linear layers: weights and inputs in 8 bits (torch)": all_in_8_bits,
    "attention scale +5 % in one layer, the mid block's first": with_scale(
        1.05, "mid_block.attentions.0.transformer_blocks.0"
    ),
    **{f"attention scale +{100 * (factor - 1):.2g} %": with_scale(factor) for factor in SCALES},
    **{f"LoRA merged at {strength:g}": with_lora(strength) for strength in STRENGTHS},
}

TEXT = """# Entropy baselines: guard a model in CI

Written by `python -m research.false_alarms`. The profile of a model is the mean attention entropy of every head at
every size, for image and cross-attention, image by image. A baseline is a profile in a JSON file, stored with the code.

## With pytest

<!-- compiled only: it is a test -->
```python
def test_profile(entropy_baseline):
    entropy_baseline.check(pipe)  # takes prompts, sizes, seeds, steps, guidance_scale
```

The first run writes `test_model/test_profile.json` next to `test_model.py` and fails with a message: commit the file.
Later runs compare with it. A failure lists the heads that moved, largest first, in standard errors, and names a figure
and the profile of this run. `pytest --entropy-regen` overwrites the baseline. The package installs the fixture; it
imports nothing until a test uses it.

## In any CI

    entropy-probe baseline save  MODEL --out FILE
    entropy-probe baseline check MODEL FILE
    entropy-probe baseline diff  FILE FILE

`save` takes `--sizes --prompts --seeds --steps --guidance-scale --device --dtype`. `check` samples with the settings of
the baseline. Its exit code is 0 if the model is the same, 1 if it moved, 2 for bad input. With the same seeds it
compares image by image, which detects the smallest changes; `--seeds` takes new seeds, at least five on each side.
`check` and `diff` write `--junit FILE.xml` and `--markdown FILE.md`; `--json` prints every head.

## How it decides

The test needs no tolerance. It is a randomisation test: it exchanges images between the two runs and counts how often
the largest |z| of all heads and sizes becomes as large as the observed one. The false-alarm rate of 1 % holds for all
heads and sizes together. With the same seeds, images are exchanged individually. With new seeds, all prompts of a seed
are exchanged together, because they share their noise. Mean differences below 1e-5 nats, the accuracy of the
measurement, count as zero. `entropy_probe/baselines/comparison.py` has the details.

## False alarms

The bundled UNet, {heads} mean entropies: {prompts} prompts, sizes 32 and 64 px, 8 steps, guidance 4.

{alarms}

Reruns are groups of five seeds ({images} images per size) out of {pool} (other rounding: {rounded}), which were
sampled once and are shuffled again after each has been used. "Other rounding" samples the same seeds without oneDNN,
in batches of another size. With five seeds on each side there are 252 exchanges, and 2 of them are as extreme as the
most extreme one, so a level of 1 % is 0.8 % in practice. Brackets are 95 % intervals under the assumption of
independent comparisons; comparisons of different shuffles are not. If other rounding changes less than the accuracy
of the measurement, that bound prevents the alarms.

## Sensitivity

One run of each change, with seeds 0 to 4. *Same seeds* compares with a run of the unchanged model with these seeds.
*New seeds* compares with each of {groups} runs of the unchanged model with five other seeds, and with one run of all
{rest} other seeds. The alarms of the first row are false: some of the {groups} groups differ by chance from the seeds
0 to 4.

{changes}

![Entropy changes by an attention scale that is wrong by 5 %](regression.png)

- Smallest change of the scale of all self-attention that was detected, of those tried: {caught} with the same seeds;
  {caught_new} with five new seeds, against every baseline. Prefer the same seeds.
- A change that raises an entropy in some images and lowers it in others looks like rounding: with the same seeds only a
  change of the mean is detected.
- The LoRA is random, of rank 4, on all attention projections; at strength 1 it would have the norm of the weights.
  A trained LoRA changes other directions.

Measured with {versions}, float32 unless stated otherwise, on a CPU with one thread.
"""


def sample_profile(work: Path, name: str, seeds: int, batch: int) -> Profile:
    """Return the profile of the unchanged model over many seeds."""
    result = ep.sweep(
        ep.reference.load(device="cpu"),
        **SETTINGS,
        seeds=range(seeds),
        scale_factors=(),
        batch=batch,
        store=work / name,
        model="reference",
    )
    return Profile.of(result)


def changed_profile(work: Path, name: str, change: Change) -> Profile:
    """Return the profile of a changed model; measure and store it if it is missing."""
    path = work / f"{re.sub('[^a-z0-9.]+', '-', name.lower())}.json"
    if not path.exists():
        pipe = change(ep.reference.load(device="cpu"))
        profile(pipe, **SETTINGS, seeds=SEEDS, model="reference", progress=True).save(path)
    return Profile.open(path)


def of_seeds(full: Profile, seeds: Any) -> Profile:
    """Return the part of a profile with some of the seeds."""
    chosen = tuple(int(seed) for seed in seeds)
    images = [(prompt, seed) for prompt in full.settings.prompts for seed in chosen]
    return replace(full, settings=replace(full.settings, seeds=chosen), entropy=full.entropy[images])


def seed_groups(seeds: int, count: int) -> Iterator[np.ndarray]:
    """Yield `count` random groups of `len(SEEDS)` seeds; all seeds are used once before any is used again."""
    generator = np.random.default_rng(0)
    while count > 0:
        groups = generator.permutation(seeds).reshape(-1, len(SEEDS))[:count]
        yield from groups
        count -= len(groups)


def alarm_rate(comparisons: list[ProfileComparison], level: float) -> str:
    """Return the number of alarms with the 95 % interval of their rate."""
    alarms, count = sum(c.heads["p"].min() <= level for c in comparisons), len(comparisons)
    interval = stats.binomtest(int(alarms), count).proportion_ci()
    return f"{alarms} of {count} [{interval.low:.1%}, {interval.high:.1%}]"


def false_alarms(pool: Profile, rounded: Profile) -> str:
    """Return the false-alarm rates as a Markdown table."""
    groups = list(seed_groups(POOL, 2 * RERUNS))
    new = [compare(of_seeds(pool, a), of_seeds(pool, b)) for a, b in zip(groups[::2], groups[1::2], strict=True)]
    same = [compare(of_seeds(pool, g), of_seeds(rounded, g)) for g in seed_groups(ROUNDED, RERUNS)]
    largest = max(float(c.heads["difference"].abs().max()) for c in same)
    rows = {"new seeds": new, f"same seeds, other rounding (changes of up to {largest:.1g} nats)": same}
    lines = [f"| reruns | {' | '.join(f'alarms at {level:.0%}' for level in LEVELS)} |", "|---|---|---|"]
    lines += [
        f"| {name} | {' | '.join(alarm_rate(found, level) for level in LEVELS)} |" for name, found in rows.items()
    ]
    return "\n".join(lines)


def sensitivity(name: str, now: Profile, baseline: Profile, pool: Profile) -> dict[str, Any]:
    """Compare a changed model with baselines of the same seeds and of new seeds; return a row of the table."""
    same = compare(baseline, now)
    others = [seed for seed in pool.settings.seeds if seed not in SEEDS]
    groups = np.array(others).reshape(-1, len(SEEDS))
    new = sum(not compare(of_seeds(pool, group), now).same for group in groups)
    large = compare(of_seeds(pool, others), now)
    worst = same.heads.iloc[0]
    return {
        "change": name,
        "same seeds": "moved" if not same.same else "the same",
        "heads moved": f"{len(same.moved)} of {len(same.heads)}",
        "largest change, nats": f"{same.heads['difference'].abs().max():.2g}",
        "worst, standard errors": f"{worst['z']:+.1f}",
        "p": f"{worst['p']:.2g}",
        "5 new seeds": f"{new} of {len(groups)}",
        f"heads moved against {len(others)} seeds": f"{len(large.moved)} of {len(large.heads)}",
    }


def smallest_scale(table: pd.DataFrame, detected: pd.Series) -> str:
    """Return the smallest change of the scale of all self-attention that was detected."""
    names = [f"attention scale +{100 * (factor - 1):.2g} %" for factor in SCALES]
    detected_names = [name for name in names if detected[table["change"] == name].all()]
    return detected_names[-1].removeprefix("attention scale +") if detected_names else "none of those tried"


def main(
    work: Annotated[Path, typer.Option(help="Folder of the sampled profiles.")] = Path("entropy-runs/regression"),
    other: Annotated[list[Path] | None, typer.Option(help="Baselines saved with other versions of diffusers.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for regression.md and its figure.")] = Path("docs"),
) -> None:
    """Measure false alarms and sensitivity, and write the page."""
    torch.set_num_threads(1)
    quiet_libraries()
    baseline = changed_profile(work, "baseline", lambda pipe: pipe)
    runs = {name: changed_profile(work, name, change) for name, change in CHANGES.items()}
    profiles = [Profile.open(path) for path in other or []]
    runs |= {f"diffusers {each.versions['diffusers']}": each for each in profiles}
    pool = sample_profile(work, "pool", POOL, batch=8)
    with torch.backends.mkldnn.flags(enabled=False):
        rounded = sample_profile(work, "rounding", ROUNDED, batch=3)
    table = pd.DataFrame([sensitivity(name, run, baseline, pool) for name, run in runs.items()])
    figure, _ = profile_changes(compare(baseline, runs[SHOWN]))
    figure.savefig(out / "regression.png", dpi=80)
    groups = POOL // len(SEEDS) - 1
    always = table["5 new seeds"] == f"{groups} of {groups}"
    page = TEXT.format(
        heads=len(baseline.entropy),
        prompts=PROMPTS,
        images=PROMPTS * len(SEEDS),
        alarms=false_alarms(pool, rounded),
        pool=POOL,
        rounded=ROUNDED,
        groups=groups,
        rest=POOL - len(SEEDS),
        changes=markdown(table),
        caught=smallest_scale(table, table["same seeds"] == "moved"),
        caught_new=smallest_scale(table, always),
        versions=", ".join(f"{name} {number}" for name, number in versions().items()),
    )
    (out / "regression.md").write_text(page)
    print(f"written to {out / 'regression.md'}")


if __name__ == "__main__":
    typer.run(main)
