"""Other tools that can measure the same: all self-attention entropies of one sampling run, by layer, head and step.

Run `python -m benchmarks peers`.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import (
    call_in_interpreter,
    call_in_process,
    measure_in_rounds,
    peak_memory,
    time_in_rounds,
)
from benchmarks.models import Sampling, pipeline

ENVIRONMENTS = Path.home() / ".cache" / "entropy-probe-benchmarks"
"""Virtual environments of the peers, one each, on top of the environment of the benchmarks."""

SELF = "*attn1"


def entropies(attention: Tensor) -> Tensor:
    """Return the mean entropy of the rows of attention maps, in nats."""
    return torch.special.entr(attention).sum(-1).mean(-1)


def mean(values: list[Tensor]) -> float:
    """Return the mean over batch items, heads, layers and steps."""
    return torch.cat([each.flatten() for each in values]).mean().item()


def plain(sampling: Sampling) -> float:
    sampling()
    return 0.0


def ours(sampling: Sampling) -> float:
    from entropy_probe import capture

    with capture(pipeline(sampling.model), layers=SELF, rows="all") as captured:
        sampling()
    return float(captured.frame()["entropy"].mean())


def attention_map_diffusers(sampling: Sampling) -> float:
    """Run attention-map-diffusers as its README shows, for all timesteps and heads.

    It computes the maps after the sampling run, from queries and keys.
    """
    from attention_map_diffusers import AttentionCapture

    pipe = pipeline(sampling.model)
    with AttentionCapture(pipe, relations="image->image", timesteps="all", heads="all") as captured:
        sampling()
    maps = captured.compute()
    return mean([entropies(record.data) for record in maps.records])


class Storing:
    """An attention processor that computes and stores its map, like the eager processor of diffusers."""

    def __init__(self) -> None:
        self.maps: list[Tensor] = []

    def __call__(self, attn: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Tensor:
        query, key, value = (
            attn.head_to_batch_dim(project(hidden_states)) for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        attention = attn.get_attention_scores(query, key, attention_mask)
        self.maps.append(attention)
        output: Tensor = attn.to_out[0](attn.batch_to_head_dim(attention @ value))
        return output


def storing_processor(sampling: Sampling) -> float:
    unet = pipeline(sampling.model).unet
    processors, storing = unet.attn_processors, Storing()
    unet.set_attn_processor({name: storing if "attn1" in name else each for name, each in processors.items()})
    try:
        sampling()
    finally:
        unet.set_attn_processor(processors)
    return mean([entropies(attention) for attention in storing.maps])


class Sampler(torch.nn.Module):
    """A module whose forward is a whole sampling run, for nnsight to trace."""

    def __init__(self, sampling: Sampling) -> None:
        super().__init__()
        self.unet = pipeline(sampling.model).unet
        self.sampling = sampling

    def forward(self, _: Tensor) -> Tensor:
        self.sampling()
        return _


def nnsight_trace(sampling: Sampling) -> float:
    """Run nnsight, which sees modules but not the attention inside: compute the maps from the stored projections."""
    from nnsight import NNsight

    unet = pipeline(sampling.model).unet
    layers = {name: module for name, module in unet.named_modules() if name.endswith("attn1")}
    model = NNsight(Sampler(sampling))
    modules = [f"model.unet.{name}.{part}" for name in layers for part in ("to_q", "to_k")]
    with model.trace(torch.zeros(1)) as tracer:
        cached = tracer.cache(modules=modules)
    values = []
    for name, layer in layers.items():
        queries, keys = (_each_step(cached[f"model.unet.{name}.{part}"].output) for part in ("to_q", "to_k"))
        for query, key in zip(queries, keys, strict=True):
            query, key = layer.head_to_batch_dim(query), layer.head_to_batch_dim(key)
            values.append(entropies(layer.get_attention_scores(query, key)))
    return mean(values)


def _each_step(output: Tensor | list[Tensor]) -> list[Tensor]:
    """Return a list of tensors; for a single step nnsight returns the tensor itself."""
    return output if isinstance(output, list) else [output]


def daam(sampling: Sampling) -> float:
    """Run daam, which sees only cross-attention and computes heat maps of words, no entropy."""
    from daam import trace

    with trace(pipeline(sampling.model)) as traced:
        sampling()
        traced.compute_global_heat_map()
    return float("nan")


@dataclass(frozen=True)
class Peer:
    """Another tool.

    Attributes:
        way: samples with the tool and returns the mean entropy, or NaN.
        installs: arguments of `pip install`, one call each, in a separate environment; none if not needed.
        remark: how its task differs.
    """

    way: Callable[[Sampling], float]
    installs: tuple[tuple[str, ...], ...] = ()
    remark: str = ""


HEAT_MAPS = "heat maps of words instead of entropies, of cross-attention to texts of 77 tokens"

PEERS = {
    "attention-map-diffusers": Peer(attention_map_diffusers, (("attention-map-diffusers==1.0.0",),)),
    "storing processor": Peer(storing_processor),
    "nnsight": Peer(nnsight_trace, (("nnsight==0.8.1",),)),
    "daam": Peer(daam, (("daam==0.2.0",),), HEAT_MAPS),
    "daam, without its version limits": Peer(daam, (("--no-deps", "daam==0.2.0"), ("spacy",)), HEAT_MAPS),
}


def environment(name: str, installs: tuple[tuple[str, ...], ...]) -> Path:
    """Return the interpreter of an environment with the packages of this one and the packages of the peer.

    Raises:
        RuntimeError: with the error of pip.
    """
    if not installs:
        return Path(sys.executable)
    folder = ENVIRONMENTS / "".join(c if c.isalnum() else "-" for c in name)
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        site_packages = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
        here = sysconfig.get_path("purelib")
        (Path(site_packages) / "below.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    for arguments in installs:
        command = [python, "-m", "pip", "install", "-q", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.lower().lstrip().startswith("error")]
            raise RuntimeError(f"pip: {(errors or done.stderr.splitlines())[-1].strip()}")
    return python


def compare(name: str, sampling: dict[str, Any], seconds: float, repeats: int) -> dict[str, Any]:
    """Measure plain sampling, our capture and a peer, in the environment of the peer."""
    work = Sampling(**sampling)
    ways = {"plain": plain, "ours": ours, "peer": PEERS[name].way}
    means = {way: ways[way](work) for way in ("peer", "ours")}
    return {
        "entropy": {way: None if value != value else value for way, value in means.items()},
        "seconds": time_in_rounds({way: partial(call, work) for way, call in ways.items()}, seconds),
        "memory": measure_in_rounds(
            {way: partial(call_in_process, memory, call, work) for way, call in ways.items()}, repeats
        ),
    }


def memory(way: Callable[[Sampling], float], sampling: Sampling) -> float:
    """Return the peak memory of one sampling run and its evaluation, in MiB, after a small one."""
    way(replace(sampling, size=sampling.size // 2, steps=1))
    return peak_memory(lambda: way(sampling))


def samplings(quick: bool) -> list[Sampling]:
    return (
        [Sampling("reference", 64, 1, 2)] if quick else [Sampling("reference", 128, 1, 4), Sampling("sd15", 256, 1, 1)]
    )


def measure_all(quick: bool) -> Iterator[dict[str, Any]]:
    seconds, repeats = (2, 1) if quick else (10, 2)
    for sampling in samplings(quick):
        for name, peer in PEERS.items():
            print(f"  {name}, {sampling}", flush=True)
            case = {"peer": name, "remark": peer.remark, "tokens": sampling.tokens, **asdict(sampling)}
            try:
                python = environment(name, peer.installs)
                arguments = (name, asdict(sampling), seconds, repeats)
                yield case | call_in_interpreter(compare, *arguments, python=python)
            except RuntimeError as error:
                yield case | {"error": str(error).replace(str(Path.home()), "~")}


def run(quick: bool) -> dict[str, Any]:
    return {"cases": list(measure_all(quick))}
