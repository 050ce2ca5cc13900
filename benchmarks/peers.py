"""What others take for the same: the entropy of all self-attention of one sampling, for every layer, head and step.

python -m benchmarks peers
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

from benchmarks.measure import apart, elsewhere, in_turns, peak, told_in_turns
from benchmarks.models import Sampling, pipeline

ENVIRONMENTS = Path.home() / ".cache" / "entropy-probe-benchmarks"
"""Where each peer that is installed has an environment of its own, over the one that runs the benchmarks."""

SELF = "*attn1"


def entropies(attention: Tensor) -> Tensor:
    """Mean entropy of the rows of a map, nats."""
    return torch.special.entr(attention).sum(-1).mean(-1)


def mean(found: list[Tensor]) -> float:
    """Of all batch items, heads, layers and steps, nats."""
    return torch.cat([each.flatten() for each in found]).mean().item()


def plain(sampling: Sampling) -> float:
    sampling()
    return 0.0


def ours(sampling: Sampling) -> float:
    from entropy_probe import capture

    with capture(pipeline(sampling.model), layers=SELF, rows="all") as captured:
        sampling()
    return float(captured.frame()["entropy"].mean())


def attention_map_diffusers(sampling: Sampling) -> float:
    """As its README says, for all timesteps and heads: maps are made after the sampling, from queries and keys."""
    from attention_map_diffusers import AttentionCapture

    pipe = pipeline(sampling.model)
    with AttentionCapture(pipe, relations="image->image", timesteps="all", heads="all") as captured:
        sampling()
    maps = captured.compute()
    return mean([entropies(record.data) for record in maps.records])


class Storing:
    """An attention processor that makes its map, as diffusers did before torch had its attention, and keeps it."""

    def __init__(self) -> None:
        self.maps: list[Tensor] = []

    def __call__(self, attn: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Tensor:
        query, key, value = (attn.head_to_batch_dim(made(hidden_states)) for made in (attn.to_q, attn.to_k, attn.to_v))
        attention = attn.get_attention_scores(query, key, attention_mask)
        self.maps.append(attention)
        found: Tensor = attn.to_out[0](attn.batch_to_head_dim(attention @ value))
        return found


def storing_processor(sampling: Sampling) -> float:
    unet = pipeline(sampling.model).unet
    own, storing = unet.attn_processors, Storing()
    unet.set_attn_processor({name: storing if "attn1" in name else each for name, each in own.items()})
    try:
        sampling()
    finally:
        unet.set_attn_processor(own)
    return mean([entropies(attention) for attention in storing.maps])


class Sampler(torch.nn.Module):
    """A sampling as the forward of a module, for nnsight to trace."""

    def __init__(self, sampling: Sampling) -> None:
        super().__init__()
        self.unet = pipeline(sampling.model).unet
        self.sampling = sampling

    def forward(self, _: Tensor) -> Tensor:
        self.sampling()
        return _


def nnsight_trace(sampling: Sampling) -> float:
    """It sees modules, not the attention inside: the maps are made of the projections that it keeps."""
    from nnsight import NNsight

    unet = pipeline(sampling.model).unet
    layers = {name: module for name, module in unet.named_modules() if name.endswith("attn1")}
    model = NNsight(Sampler(sampling))
    wanted = [f"model.unet.{name}.{part}" for name in layers for part in ("to_q", "to_k")]
    with model.trace(torch.zeros(1)) as tracer:
        kept = tracer.cache(modules=wanted)
    found = []
    for name, layer in layers.items():
        queries, keys = (_each_step(kept[f"model.unet.{name}.{part}"].output) for part in ("to_q", "to_k"))
        for query, key in zip(queries, keys, strict=True):
            query, key = layer.head_to_batch_dim(query), layer.head_to_batch_dim(key)
            found.append(entropies(layer.get_attention_scores(query, key)))
    return mean(found)


def _each_step(output: Tensor | list[Tensor]) -> list[Tensor]:
    """It hands out the tensor itself where there was one step only."""
    return output if isinstance(output, list) else [output]


def daam(sampling: Sampling) -> float:
    """Its heat maps of words: the cross-attention alone, which is all that it sees, without an entropy."""
    from daam import trace

    with trace(pipeline(sampling.model)) as traced:
        sampling()
        traced.compute_global_heat_map()
    return float("nan")


@dataclass(frozen=True)
class Peer:
    """Someone who does the same.

    Attributes:
        way: how.
        installs: what pip is asked for, one call after another, in an environment of its own; nothing where this one
            suffices.
        remark: what it does else.
    """

    way: Callable[[Sampling], float]
    installs: tuple[tuple[str, ...], ...] = ()
    remark: str = ""


WORDS = "heat maps of words in place of entropies, of cross-attention to texts of 77 tokens"

PEERS = {
    "attention-map-diffusers": Peer(attention_map_diffusers, (("attention-map-diffusers==1.0.0",),)),
    "storing processor": Peer(storing_processor),
    "nnsight": Peer(nnsight_trace, (("nnsight==0.8.1",),)),
    "daam": Peer(daam, (("daam==0.2.0",),), WORDS),
    "daam, without its pins": Peer(daam, (("--no-deps", "daam==0.2.0"), ("spacy",)), WORDS),
}


def environment(name: str, installs: tuple[tuple[str, ...], ...]) -> Path:
    """The interpreter of an environment that has all of this one's packages, but where the peer needs others.

    Raises:
        RuntimeError: with what pip said last.
    """
    if not installs:
        return Path(sys.executable)
    folder = ENVIRONMENTS / "".join(c if c.isalnum() else "-" for c in name)
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        own = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
        here = sysconfig.get_path("purelib")
        (Path(own) / "below.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    for wanted in installs:
        command = [python, "-m", "pip", "install", "-q", *wanted]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.lower().lstrip().startswith("error")]
            raise RuntimeError(f"pip: {(errors or done.stderr.splitlines())[-1].strip()}")
    return python


def compared(name: str, sampling: dict[str, Any], seconds: float, repeats: int) -> dict[str, Any]:
    """In the environment of a peer: all three in turns, their memory, and the mean entropies that two of them find."""
    work = Sampling(**sampling)
    ways = {"plain": plain, "ours": ours, "peer": PEERS[name].way}
    found = {way: ways[way](work) for way in ("peer", "ours")}
    return {
        "entropy": {way: None if value != value else value for way, value in found.items()},
        "seconds": in_turns({way: partial(call, work) for way, call in ways.items()}, seconds),
        "memory": told_in_turns({way: partial(apart, memory, call, work) for way, call in ways.items()}, repeats),
    }


def memory(way: Callable[[Sampling], float], sampling: Sampling) -> float:
    """MiB that one sampling and what is made of it take at their peak, in a process that has done a small one so."""
    way(replace(sampling, size=sampling.size // 2, steps=1))
    return peak(lambda: way(sampling))


def samplings(quick: bool) -> list[Sampling]:
    return (
        [Sampling("reference", 64, 1, 2)] if quick else [Sampling("reference", 128, 1, 4), Sampling("sd15", 256, 1, 1)]
    )


def measured(quick: bool) -> Iterator[dict[str, Any]]:
    seconds, repeats = (2, 1) if quick else (10, 2)
    for sampling in samplings(quick):
        for name, peer in PEERS.items():
            print(f"  {name}, {sampling}", flush=True)
            case = {"peer": name, "remark": peer.remark, "tokens": sampling.tokens, **asdict(sampling)}
            try:
                python = environment(name, peer.installs)
                arguments = (name, asdict(sampling), seconds, repeats)
                yield case | elsewhere("benchmarks.peers:compared", *arguments, python=python)
            except RuntimeError as error:
                yield case | {"error": str(error).replace(str(Path.home()), "~")}


def run(quick: bool) -> dict[str, Any]:
    return {"cases": list(measured(quick))}
