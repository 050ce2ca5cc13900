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
        evaluation: number of the evaluation within its step. Schedulers of second order, such as Heun's, have two.
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
        self._whole: Any = None
        self._schedule: Any = None
        self._direction = 0.0
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
            schedule: the timesteps of this run as the pipeline keeps them, all of the scheduler's or a part; None if it
                does not. A new run has a new object, also if its values are the same.
        """
        whole, progress, last = getattr(scheduler, "timesteps", None), _progress(scheduler), self.turn
        # Either object may change in a run: some pipelines exchange their schedulers, or name each timestep so.
        same = whole is self._whole or (schedule is not None and schedule is self._schedule)
        if last is None or not same:
            turn = self._start(last, timestep, scheduler, progress, _offset(whole, schedule))
        else:
            turn = self._continue(last, timestep, scheduler, progress)
        self._whole, self._schedule = whole, schedule
        self.turn, self._progress, self._timestep = turn, progress, timestep or 0.0
        return turn

    def _start(
        self, last: Turn | None, timestep: float | None, scheduler: Any, progress: int | None, begin: int | None
    ) -> Turn:
        """Start a sampling run, of which earlier passes may not have been seen."""
        whole = getattr(scheduler, "timesteps", None)
        self._timesteps = whole.double().tolist() if isinstance(whole, Tensor) and whole.ndim == 1 else []
        prk = getattr(scheduler, "prk_timesteps", None)  # an array
        first = 0 if prk is None else len(prk)
        self._steps = steps_of(self._timesteps, int(getattr(scheduler, "order", 1) or 1), first)
        begin = getattr(scheduler, "begin_index", None) if begin is None else begin
        later = range(begin or 0, len(self._timesteps))
        found = next((n for n in later if self._timesteps[n] == timestep), begin or 0)
        if hasattr(scheduler, "step_index") and begin is not None:  # it has not begun; 1.0 may be a timestep or a time
            found = int(begin)
        self._position = found if progress is None else progress
        self._begin = self._position if begin is None else int(begin)
        self._direction = 0.0
        return Turn(last.sampling + 1 if last else 0, *self._step(self._position))

    def _continue(self, last: Turn, timestep: float | None, scheduler: Any, progress: int | None) -> Turn:
        position = self._next_position(timestep, progress)
        if position is None or position < self._position:
            return self._start(last, timestep, scheduler, progress, None)
        if position == self._position and timestep is not None:
            return Turn(last.sampling, last.step, last.evaluation, last.forward + 1)
        self._position = position
        return Turn(last.sampling, *self._step(position)) if timestep is not None else last

    def _next_position(self, timestep: float | None, progress: int | None) -> int | None:
        """Return the position in the schedule; None if a new sampling run has started."""
        if progress is not None and progress != (self._begin if self._progress is None else self._progress):
            return progress
        if timestep is None or timestep == self._timestep:
            return self._position
        later = range(self._position + 1, len(self._timesteps))
        found = next((number for number in later if self._timesteps[number] == timestep), None)
        if found is not None:
            return found
        if self._timesteps:
            return None if timestep == self._timesteps[self._begin] else self._position + 1
        change = timestep - self._timestep  # noise may be at the largest timestep or at the smallest
        if change * self._direction < 0:
            return None
        self._direction = change
        return self._position + 1

    def _step(self, position: int) -> tuple[int, int]:
        """Return the step at a position of the schedule, counted from the start of the run, and its evaluation."""
        if position >= len(self._steps) or self._begin >= len(self._steps):  # a loop over other timesteps
            return position - self._begin, 0
        step, evaluation = self._steps[position]
        return step - self._steps[self._begin][0], evaluation


def _offset(whole: Any, schedule: Any) -> int | None:
    """Return where a pipeline's timesteps begin in its scheduler's; None if they are not a part of them."""
    if not (isinstance(whole, Tensor) and isinstance(schedule, Tensor)) or whole.ndim != 1 or schedule.ndim != 1:
        return None
    if whole.untyped_storage().data_ptr() != schedule.untyped_storage().data_ptr():
        return None
    return int(schedule.storage_offset() - whole.storage_offset())


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
