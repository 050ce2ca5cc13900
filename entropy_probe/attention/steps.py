"""Number the sampling runs, steps, and evaluations within a step, from the scheduler of the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Turn:
    """The place of a forward pass in the sampling.

    Attributes:
        sampling: number of the sampling run.
        step: number of the scheduler's step, from 0 at the start of the run.
        evaluation: number of the evaluation within its step. Schedulers of second order, as Heun's, have two.
        forward: number of the forward pass within its evaluation. Guidance may take two or three.
    """

    sampling: int = 0
    step: int = 0
    evaluation: int = 0
    forward: int = 0


def steps_of(schedule: Sequence[float], order: int = 1, runge_kutta: int = 0) -> list[tuple[int, int]]:
    """Return the step of each timestep of a schedule, and the number of the evaluation within that step.

    A timestep that comes twice in a row ends one step and begins the next.

    Args:
        schedule: the scheduler's timesteps.
        order: evaluations per step, as the scheduler reports them.
        runge_kutta: number of timesteps at the start whose steps have four evaluations (PNDM's `prk_timesteps`).

    >>> steps_of([9.0, 6.0, 6.0, 3.0, 3.0], order=2), steps_of([9.0, 6.0, 6.0, 3.0])  # Heun, PNDM
    ([(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)], [(0, 0), (0, 1), (1, 0), (2, 0)])
    """
    if order > 1:
        return [divmod(number, order) for number in range(len(schedule))]
    found = [divmod(number, 4) for number in range(runge_kutta)]
    for number in range(runge_kutta, len(schedule)):
        step, evaluation = found[-1] if found else (-1, 0)
        again = runge_kutta < number < len(schedule) - 1 and schedule[number] == schedule[number + 1]
        found.append((step, evaluation + 1) if again else (step + 1, 0))
    return found


class TurnCounter:
    """Finds the place of each forward pass.

    The position in the schedule is read from the scheduler, which counts its steps, or else found by the timestep.
    Without a scheduler, each new timestep is a step.

    Attributes:
        turn: the place of the latest forward pass; None before the first.
    """

    def __init__(self) -> None:
        self.turn: Turn | None = None
        self._schedule: Any = None
        self._timesteps: list[float] = []
        self._steps: list[tuple[int, int]] = []
        self._progress: int | None = None
        self._timestep = 0.0
        self._position = 0
        self._begin = 0

    def add(self, timestep: float | None, scheduler: Any, schedule: Any = None) -> Turn:
        """Add a forward pass, and return its place.

        Args:
            timestep: as the denoiser received it; None if it received none.
            scheduler: of the pipeline that runs; None if there is none.
            schedule: the timesteps of this run as the pipeline keeps them; the scheduler's by default. A new run has a
                new object, also if its values are the same.
        """
        schedule = getattr(scheduler, "timesteps", None) if schedule is None else schedule
        progress = _progress(scheduler)
        last = self.turn
        if last is None or schedule is not self._schedule:
            turn = self._start(last, timestep, scheduler, schedule, progress)
        else:
            turn = self._go_on(last, timestep, scheduler, progress)
        self.turn, self._progress, self._timestep = turn, progress, timestep or 0.0
        return turn

    def _start(
        self, last: Turn | None, timestep: float | None, scheduler: Any, schedule: Any, progress: int | None
    ) -> Turn:
        """Start a sampling run."""
        if schedule is not self._schedule or last is None:
            self._schedule = schedule
            whole = getattr(scheduler, "timesteps", None)
            self._timesteps = whole.double().tolist() if isinstance(whole, Tensor) and whole.ndim == 1 else []
            prk = getattr(scheduler, "prk_timesteps", None)  # an array
            first = 0 if prk is None else len(prk)
            self._steps = steps_of(self._timesteps, int(getattr(scheduler, "order", 1) or 1), first)
        begin = getattr(scheduler, "begin_index", None)
        found = next((n for n, own in enumerate(self._timesteps) if own == timestep), 0)
        position = progress if progress is not None else begin if begin is not None else found
        self._begin = self._position = int(position)
        return Turn(last.sampling + 1 if last else 0, *self._step(self._position))

    def _go_on(self, last: Turn, timestep: float | None, scheduler: Any, progress: int | None) -> Turn:
        position = self._next_position(timestep, progress)
        if position is None or position < self._position:
            return self._start(last, timestep, scheduler, self._schedule, progress)
        if position == self._position and timestep is not None:
            return Turn(last.sampling, last.step, last.evaluation, last.forward + 1)
        self._position = position
        return Turn(last.sampling, *self._step(position)) if timestep is not None else last

    def _next_position(self, timestep: float | None, progress: int | None) -> int | None:
        """Return the position in the schedule; None if a new sampling run has started."""
        if progress is not None and progress != (self._progress or self._begin):
            return progress
        if timestep is None or timestep == self._timestep:
            return self._position
        later = range(self._position + 1, len(self._timesteps))
        found = next((number for number in later if self._timesteps[number] == timestep), None)
        if found is not None:
            return found
        restarted = timestep > self._timestep and (not self._timesteps or timestep == self._timesteps[self._begin])
        return None if restarted else self._position + 1

    def _step(self, position: int) -> tuple[int, int]:
        """Return the step at a position of the schedule, counted from the start of the run, and its evaluation."""
        if position >= len(self._steps):  # a loop over other timesteps
            return position - self._begin, 0
        step, evaluation = self._steps[position]
        return step - self._steps[self._begin][0], evaluation


def step_count(scheduler: Any) -> int:
    """Return the number of steps of a scheduler; 1 without one."""
    schedule = getattr(scheduler, "timesteps", None)
    if not isinstance(schedule, Tensor) or getattr(scheduler, "num_inference_steps", None) is None:
        return 1
    return max(1, len(schedule) - int(getattr(scheduler, "begin_index", None) or 0))


def _progress(scheduler: Any) -> int | None:
    """Return how many evaluations a scheduler has taken from its schedule; None if it does not count them."""
    for name in ("step_index", "counter"):  # `counter` is PNDM's
        count = getattr(scheduler, name, None)
        if isinstance(count, int):
            return count
    return None
