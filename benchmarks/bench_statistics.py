"""What the exact entropy costs beside one attention call: `python benchmarks/bench_statistics.py`."""

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from entropy_probe.statistics import flash

BATCH, HEADS, WIDTH = 2, 8, 64


def softmax_then_sum(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """The entropy as it is usually computed: the whole map, then -sum p ln p."""
    attention = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
    return torch.special.entr(attention).sum(-1)


def seconds(contenders: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median time of each, taken in turns so that a slow moment of the machine hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        call()
    for _ in range(repeats):
        for name, call in contenders.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    table = Table("tokens", "attention, ms", "entropy (flash)", "softmax, then sum", "repeats")
    for tokens, repeats in ((256, 51), (1024, 21), (4096, 7)):
        query, key, value = (torch.randn(BATCH, HEADS, tokens, WIDTH) for _ in range(3))
        contenders = {
            "attention": lambda q=query, k=key, v=value: F.scaled_dot_product_attention(q, k, v),
            "flash": lambda q=query, k=key: flash(q, k),
            "map": lambda q=query, k=key: softmax_then_sum(q, k),
        }
        times = seconds(contenders, repeats)
        ratios = [f"{times[name] / times['attention']:.2f}x" for name in ("flash", "map")]
        table.add_row(str(tokens), f"{1000 * times['attention']:.2f}", *ratios, str(repeats))
    Console().print(f"batch {BATCH}, {HEADS} heads, width {WIDTH}, float32, {torch.get_num_threads()} threads", table)


if __name__ == "__main__":
    main()
