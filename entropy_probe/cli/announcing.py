"""Sample a prepared grid, and print its notices once the sampling begins: bad input then prints only its error."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from entropy_probe.cli.grids import Prepared
    from entropy_probe.cli.output import Messages
    from entropy_probe.runs import Engine, Manifest, Sweep
    from entropy_probe.runs.engines import TakeTask, TaskResult


@dataclass(frozen=True)
class _Announcing:
    """An engine that prints notices before it samples."""

    engine: Engine
    messages: Messages
    notices: tuple[str, ...]

    def sample(self, pipeline: Any, manifest: Manifest, take: TakeTask) -> Generator[TaskResult, None, None]:
        """Print the notices, then sample all tasks."""
        for notice in self.notices:
            self.messages.print(notice)
        yield from self.engine.sample(pipeline, manifest, take)


def sample_prepared(prepared: Prepared, engine: Engine, messages: Messages, **settings: Any) -> Sweep:
    """Sample a grid. The arguments of the grid are checked before a notice is printed.

    Args:
        prepared: the pipeline and the grid.
        engine: samples the cells.
        messages: prints the notices.
        settings: further arguments of `entropy_probe.sweep`.
    """
    from entropy_probe.runs import sweep

    announcing = _Announcing(engine, messages, prepared.notices)
    sampled = sweep(
        prepared.pipeline, engine=announcing, progress=messages.stage("sweep"), **prepared.arguments, **settings
    )
    return replace(sampled, engine=engine)
