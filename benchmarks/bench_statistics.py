"""What the exact entropy costs beside one attention call: `python benchmarks/bench_statistics.py`."""

import math
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table

from entropy_probe.statistics import flash

BATCH, HEADS, WIDTH = 2, 8, 64
CPU = {256: 51, 1024: 21, 4096: 7}
CUDA = {1024: 101, 4096: 51, 16384: 21, 65536: 7}
"""How often to measure at each number of tokens."""


def softmax_then_sum(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """The entropy as it is usually computed: the whole map, then -sum p ln p."""
    attention = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
    return torch.special.entr(attention).sum(-1)


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(contenders: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, float]:
    """Median time of each, taken in turns so that a slow moment of the machine hits all alike; NaN without memory."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for name, call in contenders.items():
        try:
            call()
        except torch.OutOfMemoryError:
            times[name].append(math.nan)
    for _ in range(repeats):
        for name, call in contenders.items():
            if times[name] == [math.nan]:
                continue
            wait(device)
            start = time.perf_counter()
            call()
            wait(device)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main(device: str = "cuda" if torch.cuda.is_available() else "cpu") -> None:
    """Print the table; in bfloat16 on CUDA, in float32 on a CPU."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    table = Table("tokens", "attention, ms", "entropy (flash)", "softmax, then sum", "repeats")
    for tokens, repeats in (CUDA if device == "cuda" else CPU).items():
        query, key, value = (torch.randn(BATCH, HEADS, tokens, WIDTH, dtype=dtype, device=device) for _ in range(3))
        contenders = {
            "attention": lambda q=query, k=key, v=value: F.scaled_dot_product_attention(q, k, v),
            "flash": lambda q=query, k=key: flash(q, k),
            "map": lambda q=query, k=key: softmax_then_sum(q, k),
        }
        times = seconds(contenders, repeats, device)
        ratios = [f"{times[name] / times['attention']:.2f}x" for name in ("flash", "map")]
        table.add_row(str(tokens), f"{1000 * times['attention']:.2f}", *ratios, str(repeats))
    where = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    Console().print(f"batch {BATCH}, {HEADS} heads, width {WIDTH}, {str(dtype)[6:]}, {where}", table)


if __name__ == "__main__":
    typer.run(main)
