"""The noise level of a forward pass: the fraction of the sampling that remains."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from entropy_probe.attention import Forward, one_timestep

TRAINING_TIMESTEPS = 1000
"""Timesteps of a model in training, if its scheduler does not say."""


class NoiseLevel:
    """Computes the noise level of the forward passes of one model.

    Args:
        model: a pipeline, whose scheduler knows the timesteps, or a denoiser.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._latest: tuple[Forward, float | None] | None = None

    def of(self, forward: Forward) -> float | None:
        """Return the noise level of a pass, from 0 (image) to 1 (noise); None if it has no timestep.

        It is the timestep of the scheduler divided by the number of its training timesteps. For flow models, this is
        the time of the flow. Without a scheduler, a timestep of at most 1 is used as it is.
        """
        if self._latest is None or self._latest[0] is not forward:  # once for all layers of a pass
            self._latest = (forward, self._compute(forward))
        return self._latest[1]

    def _compute(self, forward: Forward) -> float | None:
        own = one_timestep(forward.timestep)
        if own is None:
            return None
        scheduler: Any = getattr(self._model, "scheduler", None)
        config = getattr(scheduler, "config", None)
        total = float(getattr(config, "num_train_timesteps", None) or TRAINING_TIMESTEPS)
        schedule = getattr(scheduler, "timesteps", None)
        if isinstance(schedule, Tensor) and schedule.ndim == 1 and len(schedule):
            timesteps = schedule.double().tolist()
            if hasattr(scheduler, "step_index"):  # the denoiser may receive the time in another form, or reversed
                position = scheduler.step_index
                position = getattr(scheduler, "begin_index", None) or 0 if position is None else position
                return _limited(timesteps[min(int(position), len(timesteps) - 1)] / total)
            if own in timesteps:
                return _limited(own / total)
        return _limited(own if own <= 1 else own / total)


def _limited(level: float) -> float:
    return min(1.0, max(0.0, level))
