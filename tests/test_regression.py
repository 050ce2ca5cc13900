"""Entropy profiles: file format, statistical test on simulated and real changes, reports, command line, plugin."""

import itertools
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import nn

from entropy_probe import strict_json
from entropy_probe.baselines import Profile, ProfileComparison, Settings, compare, junit, markdown, profile, text
from entropy_probe.baselines.comparison import RESOLUTION
from entropy_probe.baselines.profiles import HEAD, MIN_IMAGES
from entropy_probe.cli import main as cli
from entropy_probe.errors import InputError
from entropy_probe.models import load
from entropy_probe.plots import profile_changes
from entropy_probe.runs import sweep

pytest_plugins = "pytester"

SIZES = ((32, 32), (64, 64))
TINY = dict(
    prompts=("noto red apple", "flat pizza"), sizes=((64, 64),), seeds=(0, 1, 2, 3, 4), steps=2, guidance_scale=4.0
)  # fmt: skip


TEN = {**TINY, "seeds": tuple(range(10))}
"""With five seeds, the smallest p value is at the false-alarm rate."""


def profile_of(values, seeds=None, prompts=("a", "b")):
    """Return a profile with these entropies, heads x images: half of the heads at 32 px, the other half at 64 px."""
    seeds = tuple(range(values.shape[1] // len(prompts))) if seeds is None else seeds
    settings = Settings(prompts, SIZES, seeds, 8, 4.0)
    half = len(values) // 2
    heads = [("attn", "self", head, *size) for size in SIZES for head in range(half)]
    images = pd.MultiIndex.from_product([prompts, seeds], names=["prompt", "seed"])
    table = pd.DataFrame(values, index=pd.MultiIndex.from_tuples(heads, names=HEAD), columns=images)
    return Profile("m", "f", "P", "float32", "cpu", {"torch": "2"}, settings, table)


def correlated(generator, heads, images):
    """Return heavy-tailed noise in which the heads of an image are strongly correlated, as in a real network."""
    return generator.standard_t(4, (1, images)) + 0.5 * generator.standard_t(4, (heads, images))


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    """Return a separate tiny pipeline. Tests may change its weights and must restore them."""
    return load(tiny_folder, device="cpu")


@pytest.fixture(scope="module")
def tiny_profile(tiny):
    return profile(tiny, **TINY, model="tiny")


@pytest.fixture
def queries_scaled(tiny):
    """Return a function that multiplies the self-attention queries, which simulates a wrong softmax scale."""
    weights = [p for n, p in tiny.unet.named_parameters() if n.endswith("attn1.to_q.weight")]

    def scale(factor):
        for weight in weights:
            weight.data *= factor

    before = [weight.detach().clone() for weight in weights]
    yield scale
    for weight, old in zip(weights, before, strict=True):
        weight.data.copy_(old)


# The profile and its file


def test_profile_is_the_mean_of_the_conditional_rows(tiny, tiny_profile, tmp_path):
    run = sweep(tiny, **TINY, scale_factors=(2.0,), store=tmp_path / "run", progress=False)
    frame = run.frame(curves=True)
    layer, kind, head, *_ = tiny_profile.entropy.index[3]
    here = (frame["layer"] == layer) & (frame["kind"] == kind) & (frame["head"] == head) & (frame["branch"] == "cond")
    rows = frame[here & (frame["scale_factor"] == 1) & (frame["prompt"] == "flat pizza") & (frame["seed"] == 4)]
    assert len(rows) == TINY["steps"]
    assert tiny_profile.entropy.iloc[3]["flat pizza", 4] == pytest.approx(rows["entropy"].mean(), abs=1e-6)
    assert set(tiny_profile.entropy.index.get_level_values("kind")) == {"self", "cross"}
    row = tiny_profile.table().iloc[3]
    values = tiny_profile.entropy.iloc[3].to_numpy()
    assert (row["n"], row["head"]) == (10, head)
    assert row["se"] == pytest.approx(np.std(values, ddof=1) / math.sqrt(10))
    assert row["entropy"] == pytest.approx(values.mean())


def test_every_value_of_a_profile_is_in_its_own_cell(tiny):
    """pandas 2 puts values into other cells if it unstacks prompts that are not in alphabetical order unsorted."""
    settings = {**TINY, "prompts": ("zebra", "apple"), "seeds": (3, 1, 4, 0), "sizes": ((64, 64), (32, 32))}
    run = sweep(tiny, **settings, progress=False)
    frame = run.frame()
    frame = frame[frame["branch"] == "cond"].astype({"entropy": float})
    measured = Profile.of(run).entropy
    assert list(measured.columns) == list(itertools.product(("zebra", "apple"), (3, 1, 4, 0)))
    for (*keys, prompt, seed), rows in frame.groupby([*HEAD, "prompt", "seed"]):
        assert measured.loc[tuple(keys), (prompt, seed)] == pytest.approx(rows["entropy"].mean(), abs=1e-6)


def test_saved_profile_is_read_back(tiny_profile, tmp_path):
    path = tiny_profile.save(tmp_path / "new" / "b.json")
    again = Profile.open(path)
    pd.testing.assert_frame_equal(again.entropy, tiny_profile.entropy)
    assert replace(again, entropy=None).__dict__ == replace(tiny_profile, entropy=None).__dict__
    assert sum('"head"' in line for line in path.read_text().splitlines()) == len(tiny_profile.entropy)


CORRUPT = {
    "not JSON": (lambda f: "{", "not a baseline file of entropy-probe: invalid JSON: .* at line 1"),
    "other format": (lambda f: {**f, "format": 9}, "'format' must be 1, got 9"),
    "no format": (lambda f: {k: v for k, v in f.items() if k != "format"}, "'format' is missing"),
    "unknown field": (lambda f: {**f, "mood": 1}, "not a baseline file .*: unknown field 'mood'"),
    "missing field": (lambda f: {k: v for k, v in f.items() if k != "dtype"}, "'dtype' is missing"),
    "a list": (lambda f: [1], "not a baseline file of entropy-probe: the file must be an object"),
    "no rows": (lambda f: {**f, "entropy": []}, "exactly one row for every head and size"),
    "repeated row": (
        lambda f: {**f, "entropy": f["entropy"] + f["entropy"][:1]},
        "exactly one row for every head and size",
    ),
    "missing image": (
        lambda f: {**f, "entropy": [{**f["entropy"][0], "images": f["entropy"][0]["images"][1:]}]},
        "10 entropies, one for every prompt and seed",
    ),
    "NaN": (lambda f: {**f, "entropy": [{**f["entropy"][0], "images": [math.nan] * 10}]}, "must be a finite number"),
    "null": (
        lambda f: {**f, "entropy": [{**f["entropy"][0], "images": [None] * 10}]},
        "must be a valid number, got None",
    ),
    "text for a number": (
        lambda f: {**f, "settings": {**f["settings"], "steps": "8"}},
        "'settings.steps' must be a valid integer, got '8'",
    ),
    "size not sampled": (lambda f: {**f, "entropy": [{**f["entropy"][0], "size": [8, 8]}]}, "every head and size"),
    "repeated seed": (lambda f: {**f, "settings": {**f["settings"], "seeds": [0] * 5}}, "seeds contains 0 twice"),
    "too few images": (lambda f: {**f, "settings": {**f["settings"], "seeds": [0]}}, "at least 8 images"),
}


@pytest.mark.parametrize("case", CORRUPT)
def test_rejects_corrupt_file_and_names_it(tiny_profile, tmp_path, case):
    corrupt, message = CORRUPT[case]
    content = corrupt(json.loads(tiny_profile.to_json()))
    path = tmp_path / "b.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=message) as rejected:
        Profile.open(path)
    assert "b.json" in str(rejected.value)
    assert "\n" not in str(rejected.value)


def test_rejects_long_file_without_parsing_it(tiny_profile, tmp_path, monkeypatch):
    monkeypatch.setattr(strict_json, "MAX_BYTES", 100)
    path = tiny_profile.save(tmp_path / "b.json")
    with pytest.raises(InputError, match=r"b\.json': .*b\.json is longer than"):
        Profile.open(path)


def test_rejects_too_few_images_before_sampling(tiny):
    with pytest.raises(InputError, match=f"at least {MIN_IMAGES}"):
        profile(tiny, **{**TINY, "seeds": (0, 1, 2)})


# The test


def test_p_is_fraction_of_exchanges_with_at_least_the_observed_maximum_z():
    generator = np.random.default_rng(1)
    x = correlated(generator, 6, 8)
    y = x + 0.3 * correlated(generator, 6, 8) + np.array([[1.0], [0], [0], [0], [0], [0.2]])

    def largest(sign):
        return max(abs(stats.ttest_1samp((y - x)[head] * sign, 0).statistic) for head in range(6))

    every = [largest(np.array(sign)) for sign in itertools.product([-1, 1], repeat=8)]
    heads = compare(profile_of(x), profile_of(y)).heads
    for row in heads.itertuples():
        assert row.z == pytest.approx(
            stats.ttest_rel(*(a[row.head + 3 * (row.height == 64)] for a in (y, x))).statistic, rel=1e-6
        )
        assert row.p == pytest.approx(np.mean([z >= abs(row.z) - 1e-6 for z in every]))
    assert heads["z"].abs().is_monotonic_decreasing


def test_new_seeds_are_exchanged_with_all_their_prompts():
    generator = np.random.default_rng(2)
    x, y = generator.normal(size=(4, 10)), generator.normal(size=(4, 10)) + np.array([[0.5], [0], [0], [0]])
    seeds = np.concatenate([x.reshape(4, 2, 5).mean(1), y.reshape(4, 2, 5).mean(1)], axis=1)

    def largest(chosen):
        rest = [s for s in range(10) if s not in chosen]
        return max(abs(stats.ttest_ind(h[rest], h[list(chosen)], equal_var=False).statistic) for h in seeds)

    every = [largest(chosen) for chosen in itertools.combinations(range(10), 5)]
    comparison = compare(profile_of(x), profile_of(y, seeds=(5, 6, 7, 8, 9)))
    assert not comparison.paired
    for row in comparison.heads.itertuples():
        assert row.p == pytest.approx(np.mean([z >= abs(row.z) - 1e-6 for z in every]))


@pytest.mark.parametrize("paired", [True, False])
def test_false_alarm_rate_equals_the_level(paired):
    """Run 200 comparisons of 24 dependent heads. Without correction, most would report a change."""
    generator = np.random.default_rng(3)
    level, alarms, count = 0.1, 0, 200
    for _ in range(count):
        x = correlated(generator, 24, 10)
        y = x + correlated(generator, 24, 10) if paired else correlated(generator, 24, 10)
        alarms += not compare(
            profile_of(x), profile_of(y, seeds=tuple(range(5 * (not paired), 10 - 5 * paired))), level
        ).same
    low, high = stats.binom.interval(0.999, count, level)
    assert low <= alarms <= high


def test_seeds_that_prompts_share_do_not_raise_false_alarms():
    """Images with the same seed are not independent, so exchanging them individually would cause false alarms."""
    generator = np.random.default_rng(4)
    prompts, count, level = tuple("abcdef"), 100, 0.1

    def run():
        return np.tile(generator.normal(size=(8, 5)), 6) + 0.1 * generator.normal(size=(8, 30))

    alarms = sum(
        not compare(profile_of(run(), prompts=prompts), profile_of(run(), (5, 6, 7, 8, 9), prompts), level).same
        for _ in range(count)
    )
    assert alarms <= stats.binom.ppf(0.999, count, level)


def test_only_shifted_heads_are_reported():
    generator = np.random.default_rng(5)
    x = 3 + correlated(generator, 40, 20)
    y = x + 0.01 * correlated(generator, 40, 20)
    y[[4, 30]] += 0.1
    moved = compare(profile_of(x), profile_of(y)).moved
    assert set(zip(moved["height"], moved["head"], strict=True)) == {(32, 4), (64, 10)}
    assert moved["difference"].to_numpy() == pytest.approx([0.1, 0.1], abs=0.02)


def test_difference_within_the_measurement_accuracy_counts_as_zero():
    x = np.random.default_rng(6).normal(size=(4, 10))
    assert compare(profile_of(x), profile_of(x)).heads["z"].eq(0).all()
    assert compare(profile_of(x), profile_of(x + 0.9 * RESOLUTION)).same
    assert not compare(profile_of(x), profile_of(x + 3 * RESOLUTION)).same


def test_removed_or_added_heads_are_a_change():
    x = profile_of(np.random.default_rng(7).normal(size=(4, 10)))
    less = replace(x, entropy=x.entropy.drop(index=1, level="head"))
    comparison = compare(x, less)
    assert (comparison.same, comparison.vanished, comparison.appeared) == (False, ("attn, self, head 1",), ())
    assert compare(less, x).appeared == ("attn, self, head 1",)
    assert "only in the baseline: attn, self, head 1" in text(comparison)
    assert 'failures="1"' in junit(comparison)


def test_comparison_survives_json():
    generator = np.random.default_rng(10)
    x = profile_of(generator.normal(size=(4, 10)))
    now = profile_of(x.entropy.to_numpy() + np.array([[1.0], [0], [0], [0]]))
    comparison = compare(x, replace(now, entropy=now.entropy.drop(index=1, level="head")))
    again = ProfileComparison.from_json(comparison.to_json(), comparison.baseline, comparison.now)
    pd.testing.assert_frame_equal(again.heads, comparison.heads)
    assert again.to_json() == comparison.to_json()
    assert text(again) == text(comparison)
    with pytest.raises(InputError, match="give the compared profiles"):
        ProfileComparison.from_json(comparison.to_json(), x, now)


def test_rejects_incomparable_profiles():
    x = np.random.default_rng(8).normal(size=(4, 10))
    one = profile_of(x)
    with pytest.raises(InputError, match="steps must be 8, as in the baseline, got 9"):
        compare(one, replace(one, settings=replace(one.settings, steps=9)))
    with pytest.raises(InputError, match="prompts must be"):
        compare(one, profile_of(x, prompts=("a", "c")))
    with pytest.raises(InputError, match="only some are shared"):
        compare(one, profile_of(x, seeds=(4, 5, 6, 7, 8)))
    with pytest.raises(InputError, match="no attention head in common"):
        compare(one, replace(one, entropy=one.entropy.rename(index={"attn": "other"})))
    with pytest.raises(InputError, match=r"10 images are too few .* sample 11 images"):
        compare(one, one, level=0.001)
    with pytest.raises(InputError, match=r"5 and 4 seeds are too few .* sample 7 seeds each"):
        compare(one, profile_of(x[:, :8], seeds=(5, 6, 7, 8)), level=0.001)


# Real changes


def test_unchanged_model_is_bit_identical(tiny, tiny_profile):
    comparison = compare(tiny_profile, profile(tiny, **TINY))
    assert comparison.same
    assert comparison.heads["difference"].eq(0).all()
    assert comparison.other_differences() == []


def test_different_rounding_is_not_a_change(tiny, tiny_profile):
    one_by_one = Profile.of(sweep(tiny, **TINY, scale_factors=(), batch=1, progress=False))
    assert not one_by_one.entropy.equals(tiny_profile.entropy)
    assert compare(tiny_profile, one_by_one).same


def test_detects_attention_scale_wrong_by_five_percent(tiny, tiny_profile, queries_scaled):
    queries_scaled(1.05)
    comparison = compare(tiny_profile, profile(tiny, **TINY))
    assert not comparison.same
    largest = comparison.heads.iloc[0]
    assert largest["kind"] == "self"
    assert largest["difference"] < 0  # a larger scale lowers the entropy
    assert comparison.other_differences() == ["different weights, configuration or tokenizer"]


def noise(dtype):
    return torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=dtype).float()


@pytest.mark.skipif(
    not torch.allclose(noise(torch.bfloat16), noise(torch.float32), atol=0.1),
    reason="this torch samples other noise in half precision, and the mean entropies of other images need not move",
)
def test_detects_half_precision(tiny, tiny_folder):
    half = compare(profile(tiny, **TEN), profile(load(tiny_folder, device="cpu", dtype="bfloat16"), **TEN))
    assert not half.same
    assert "dtype float32 -> bfloat16" in half.other_differences()


@pytest.mark.parametrize("seed", range(3))
def test_detects_perturbed_weights(tiny, seed):
    original = profile(tiny, **TEN)
    weight = tiny.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_k").weight
    before = weight.detach().clone()
    nn.init.normal_(weight, std=float(before.std()), generator=torch.Generator().manual_seed(seed))
    try:
        assert not compare(original, profile(tiny, **TEN)).same
    finally:
        weight.data.copy_(before)


# Text, Markdown and JUnit XML


@pytest.fixture(scope="module")
def moved():
    generator = np.random.default_rng(9)
    x = 3 + correlated(generator, 60, 20)
    return compare(
        profile_of(x), profile_of(x + np.linspace(0, 0.5, 60)[:, None] + 0.01 * correlated(generator, 60, 20))
    )


def test_table_lists_moved_heads_by_decreasing_z(moved):
    lines = text(moved).splitlines()
    assert lines[0].startswith(
        f"{len(moved.moved)} of 60 mean entropies moved (same 20 images). False-alarm rate: at most 1 %."
    )
    assert lines[-1] == f"and {len(moved.moved) - 20} more"
    errors = [float(line.split()[-1]) for line in lines[3:-1]]
    assert len(errors) == 20
    assert errors == sorted(errors, key=abs, reverse=True)
    assert markdown(moved).startswith("## Entropy of `m`: changed\n")
    assert "| layer | head | size |" in markdown(moved)


def test_junit_counts_its_failures(moved):
    suite = ElementTree.fromstring(junit(moved))
    assert [int(suite.get(name)) for name in ("tests", "failures")] == [3, 2]
    failures = suite.findall("testcase/failure")
    assert sum(int(f.get("message").split()[0]) for f in failures) == len(moved.moved)
    assert "standard errors" in failures[0].text


def test_figure_has_a_panel_per_size_and_a_point_per_head(moved):
    drawn, data = profile_changes(moved)
    assert len(data) == 60
    counts = [moved.moved["height"].eq(side).sum() for side in (32, 64)]
    assert [axes.get_title() for axes in drawn.axes] == [
        f"at {side} px: {count} of 30 moved" for side, count in zip((32, 64), counts, strict=True)
    ]
    points = [len(line.get_xdata()) for axes in drawn.axes for line in axes.lines if line.get_marker() == "o"]
    assert sum(points) == 60


# The command line


@pytest.fixture
def call(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["entropy-probe", "baseline", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, *capsys.readouterr()

    return run


def test_command_line_saves_checks_and_diffs(call, tiny, tiny_folder, tmp_path, queries_scaled):
    grid = ("--sizes", "64", "--prompts", "2", "--seeds", "0,1,2,3,4", "--steps", "1", "--device", "cpu")
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    code, out, err = call("save", tiny_folder, "--out", old, "--quiet", *grid)
    assert (code, out, err) == (0, "", "")
    assert call("check", tiny_folder, old, "--device", "cpu")[0] == 0
    assert call("check", tiny_folder, old, "--device", "cpu", "--seeds", "5,6,7,8,9")[0] == 0
    queries_scaled(1.05)
    tiny.save_pretrained(tmp_path / "wrong")
    files = ("--junit", tmp_path / "ci" / "j.xml", "--markdown", tmp_path / "ci" / "m.md")
    code, out, err = call("check", tmp_path / "wrong", old, "--device", "cpu", "--json", *files)
    assert (code, err) == (1, "")
    result = json.loads(out)
    assert not result["same"]
    assert any(head["moved"] for head in result["heads"])
    assert int(ElementTree.parse(tmp_path / "ci" / "j.xml").getroot().get("failures")) > 0
    assert "mean entropies moved" in (tmp_path / "ci" / "m.md").read_text()
    assert call("save", tmp_path / "wrong", "--out", new, "--quiet", *grid)[0] == 0
    code, _, err = call("diff", old, new)
    assert code == 1
    assert "standard errors" in err
    assert call("diff", old, old)[0] == 0


def test_bad_input_is_one_line_and_exit_code_2(call, tiny_folder, tmp_path):
    (tmp_path / "b.json").write_text("{}")
    for arguments in (
        ("check", tiny_folder, tmp_path / "none.json"),
        ("check", tiny_folder, tmp_path / "b.json"),
        ("diff", tmp_path / "b.json", tmp_path / "b.json"),
        ("save", "/nowhere", "--out", tmp_path / "c.json"),
        ("save", tiny_folder, "--seeds", "0", "--prompts", "2", "--device", "cpu", "--out", tmp_path / "c.json"),
    ):
        code, out, err = call(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("error: ")


# The plugin

TEST = """
import pytest
from entropy_probe.models import load

SETTINGS = dict(prompts=["noto red apple", "flat pizza"], sizes=[(32, 32)], seeds=range(5), steps=1)

@pytest.mark.parametrize("factor", [{factor}], ids=["a model"])
def test_profile(entropy_baseline, factor):
    pipe = load({folder!r}, device="cpu")
    for name, parameter in pipe.unet.named_parameters():
        if name.endswith("attn1.to_q.weight"):
            parameter.data *= factor
    entropy_baseline.check(pipe, **SETTINGS)
"""


def test_missing_baseline_error_names_the_command_that_creates_one(tmp_path):
    with pytest.raises(
        InputError, match=r"b\.json': No such file or directory; create one with entropy-probe baseline save"
    ):
        Profile.open(tmp_path / "b.json")


def test_plugin_saves_the_baseline_next_to_the_test(pytester, tiny_folder):
    def run(factor, *options):
        pytester.makepyfile(test_model=TEST.format(factor=factor, folder=str(tiny_folder)))
        done = pytester.runpytest_inprocess("-p", "no:cacheprovider", *options)
        return int(done.ret), done.outlines

    def named(lines, what):
        return next(line for line in lines if line.startswith(f"{what}: ")).split(": ")[1]

    baseline = pytester.path / "test_model" / "test_profile_a_model.json"
    code, lines = run(1.0)
    assert code == 1
    assert any(f"no baseline yet: wrote {baseline}" in line for line in lines)
    assert run(1.0)[0] == 0
    code, lines = run(1.05)
    assert code == 1
    assert any("standard errors" in line for line in lines)
    assert os.path.getsize(named(lines, "figure")) > 0
    assert not compare(Profile.open(baseline), Profile.open(named(lines, "profile"))).same
    assert run(1.05, "--entropy-regen")[0] == 0
    assert run(1.05)[0] == 0
    baseline.write_text("{}")
    code, lines = run(1.05)
    assert code == 1
    assert any("cannot read the baseline" in line for line in lines)


def test_plugin_is_loaded_without_heavy_imports():
    check = (
        "import sys, pytest; pytest.main(['--co', '-q', '--help'], plugins=[]); "
        "print('LOADED', [m for m in ('entropy_probe.pytest_plugin', 'torch', 'pandas') if m in sys.modules])"
    )
    out = subprocess.check_output([sys.executable, "-c", check], text=True, cwd="/")
    assert "--entropy-regen" in out
    assert "LOADED ['entropy_probe.pytest_plugin']" in out
