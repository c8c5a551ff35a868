"""Gradient descent on a calibration set that never ends worse than it began, and can be interrupted and continued."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgeq.errors import DataError, UsageError
from edgeq.progress import Advance
from edgeq.quant.reconstruct import checkpoint

_LEAST_HELD = 4
_SURE = 1.0  # standard errors

Stop = Literal["iterations", "budget", "patience", "diverged"]


@dataclass(frozen=True)
class FitSettings:
    """How long and on what a fit trains.

    Args:
        iterations: Steps.
        batch_size: Samples of a step.
        holdout: Share of the samples that is not trained on and judges the result, in (0, 1).
        evaluations: How often the held-out samples are looked at; also how often the state is stored.
        patience: Looks without improvement before giving up; None for never. AdaRound decides late: leave it None.
        budget_seconds: Wall-clock limit of one call; None for none.
        seed: Of batches, of the hold-out and of what is dropped.

    Raises:
        UsageError: A number out of bounds.
    """

    iterations: int = 1000
    batch_size: int = 32
    holdout: float = 0.2
    evaluations: int = 20
    patience: int | None = None
    budget_seconds: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        counts = (self.iterations, self.batch_size, self.evaluations, 1 if self.patience is None else self.patience)
        budget = 0.0 if self.budget_seconds is None else self.budget_seconds
        if min(counts) < 1 or not 0 < self.holdout < 1 or not budget >= 0 or self.seed < 0:
            raise UsageError(
                f"impossible settings of a fit: {self}",
                code="EQ-U286",
                hint="counts must be at least 1, the hold-out a share between 0 and 1",
            )

    def split(self, samples: int) -> tuple[Tensor, Tensor]:
        """Numbers of the samples to train on, and of those held out: their share, at least 4, or half of fewer than 8.

        Raises:
            DataError: There are fewer than two samples.
        """
        if samples < 2:
            raise DataError(
                f"{samples} calibration samples: none would be left to judge the result",
                code="EQ-D283",
                hint="calibrate with at least 2 samples, better 32 or more",
            )
        order = torch.randperm(samples, generator=torch.Generator().manual_seed(self.seed))
        held = min(samples - 1, max(round(self.holdout * samples), min(_LEAST_HELD, samples // 2)))
        return order[held:].sort().values, order[:held].sort().values


@dataclass(frozen=True, eq=False)
class ParameterGroup:
    """Parameters that share a step size.

    Args:
        parameters: By a name that is unique in the fit.
        learning_rate: First step size.
        sign: Step by the sign of the gradient with a rate that falls to 0 linearly (SignRound), in place of Adam
            (Kingma and Ba 2015, arXiv 1412.6980) with a rate that falls to 0 as a half cosine.
    """

    parameters: Mapping[str, nn.Parameter]
    learning_rate: float
    sign: bool = False


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a fit, as its objective sees it.

    Args:
        iteration: From 0.
        share: How far the fit has come, 0 to 1.
        generator: All randomness of the step; seeded by the iteration, so that a continued fit repeats it.
    """

    iteration: int
    share: float
    generator: torch.Generator


@dataclass(frozen=True)
class FitResult:
    """What a fit came to.

    Args:
        start: Loss on the held-out samples before the first step.
        best: The same of the parameters that were kept; never above `start`.
        best_iteration: Steps done when they were found; 0 when nothing was better than the start.
        iterations: Steps done in all, earlier calls included.
        stopped: Why it ended: all `iterations` done, `budget` used up (call again to continue), `patience` lost, or
            the loss `diverged`.
        history: `(steps, held-out loss)` of each look.
    """

    start: float
    best: float
    best_iteration: int
    iterations: int
    stopped: Stop
    history: tuple[tuple[int, float], ...]


Objective = Callable[[Step], Tensor]
"""Loss of one step, differentiable in the parameters."""

HoldoutLosses = Callable[[], Tensor]
"""Loss of each held-out sample `(n,)` with the present parameters, as they would be deployed."""


def fit(
    groups: Sequence[ParameterGroup],
    objective: Objective,
    holdout_losses: HoldoutLosses,
    settings: FitSettings,
    *,
    project: Callable[[], None] | None = None,
    path: Path | None = None,
    identity: str = "",
    progress: Advance | None = None,
) -> FitResult:
    """Train parameters in place and leave the best ones in them.

    Parameters are only kept if they are better than the start by more than the standard error of the held-out samples'
    differences: the best of many looks at a few samples may otherwise be worse than the start on all others.

    Args:
        groups: What to train.
        objective: What to descend.
        holdout_losses: What judges the parameters.
        settings: How long.
        project: Puts parameters back into their bounds after each step.
        path: Where the state is kept; a call with the same work continues there, and ends as if never interrupted.
        identity: What else tells this work from other work, such as a hash of its data.
        progress: Called with the steps done since the last call.

    Raises:
        UsageError: There is nothing to train, or the state at `path` belongs to other work.
        DataError: The loss before the first step is not finite.
    """
    run = _Run(groups, settings)
    losses = holdout_losses().double()
    start = float(losses.mean())
    if not math.isfinite(start):
        hint = "check the calibration data and the grids of this block"
        raise DataError(f"the loss before the first step is {start}", code="EQ-D284", hint=hint)
    run.begin(losses)
    tag = checkpoint.fingerprint(_endless(settings), identity, start, run.rates, run.parameters) if path else ""
    stored = checkpoint.load(path, tag) if path else None
    if stored is not None:
        run.restore(stored)
        if progress is not None:
            progress(run.iteration)
    deadline = math.inf if settings.budget_seconds is None else time.monotonic() + settings.budget_seconds
    stopped: Stop | None = run.ended
    while stopped is None:
        if time.monotonic() >= deadline:
            stopped = "budget"
            break
        stopped = run.step(objective, project, holdout_losses)
        if path and (stopped or run.iteration in run.looks):
            checkpoint.save(path, tag, run.state(stopped))
        if progress is not None:
            progress(1)
    if path and stopped == "budget":
        checkpoint.save(path, tag, run.state(None))
    run.keep_best()
    return FitResult(start, run.best_loss, run.best_iteration, run.iteration, stopped, tuple(run.history))


class _Run:
    """Everything that changes while a fit goes on."""

    def __init__(self, groups: Sequence[ParameterGroup], settings: FitSettings) -> None:
        self.parameters = {name: p for group in groups for name, p in group.parameters.items()}
        rates = [group.learning_rate for group in groups]
        if not self.parameters or len(self.parameters) != sum(len(g.parameters) for g in groups):
            raise UsageError("nothing to train, or a name twice", code="EQ-U285", hint="give at least one weight")
        if not all(0 < rate < math.inf for rate in rates):
            raise UsageError(f"learning rates must be positive, not {rates}", code="EQ-U286", hint="1e-3 for example")
        self.rates, self._groups, self._settings = rates, groups, settings
        adam = [{"params": list(g.parameters.values()), "lr": g.learning_rate} for g in groups if not g.sign]
        self._adam = torch.optim.Adam(adam) if adam else None
        looks = range(1, settings.evaluations + 1)
        self.looks = frozenset(math.ceil(i * settings.iterations / settings.evaluations) for i in looks)
        self.iteration = 0
        self.ended: Stop | None = None
        self.history: list[tuple[int, float]] = []

    def begin(self, losses: Tensor) -> None:
        self._start, self.best_loss, self.best_iteration = losses, float(losses.mean()), 0
        self._best = self._copy()

    def step(
        self, objective: Objective, project: Callable[[], None] | None, holdout_losses: HoldoutLosses
    ) -> Stop | None:
        """One step, and a look at the held-out samples where one is due; why to stop, or None."""
        share = self.iteration / self._settings.iterations
        seed = (self._settings.seed * 1_000_003 + self.iteration + 1) % 2**63
        loss = objective(Step(self.iteration, share, torch.Generator().manual_seed(seed)))
        if not bool(torch.isfinite(loss)):
            return "diverged"
        gradients = torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True)
        self._apply(dict(zip(self.parameters, gradients, strict=True)), share)
        if project is not None:
            project()
        self.iteration += 1
        return self._look(holdout_losses().double()) if self.iteration in self.looks else None

    def _look(self, losses: Tensor) -> Stop | None:
        loss, gains = float(losses.mean()), self._start - losses
        self.history.append((self.iteration, loss))
        doubt = _SURE * float(gains.std()) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
        if loss < self.best_loss and float(gains.mean()) > doubt:
            self.best_loss, self.best_iteration, self._best = loss, self.iteration, self._copy()
        if self.iteration >= self._settings.iterations:
            return "iterations"
        patience = self._settings.patience
        since = sum(iteration > self.best_iteration for iteration, _ in self.history)
        return "patience" if patience is not None and since >= patience else None

    @torch.no_grad()
    def _apply(self, gradients: Mapping[str, Tensor | None], share: float) -> None:
        for group in self._groups:
            for name, parameter in group.parameters.items():
                gradient = gradients[name]
                if not group.sign:
                    parameter.grad = gradient
                elif gradient is not None:
                    parameter.sub_(gradient.sign(), alpha=group.learning_rate * (1 - share))
        if self._adam is None:
            return
        adam = [group.learning_rate for group in self._groups if not group.sign]
        for settings, rate in zip(self._adam.param_groups, adam, strict=True):
            settings["lr"] = rate * (1 + math.cos(math.pi * share)) / 2
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)

    def _copy(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def keep_best(self) -> None:
        self._put(self._best)

    def state(self, stopped: Stop | None) -> dict[str, Any]:
        return {
            "iteration": self.iteration,
            "stopped": stopped,
            "parameters": self._copy(),
            "adam": None if self._adam is None else self._adam.state_dict(),
            "best": self._best,
            "best_loss": self.best_loss,
            "best_iteration": self.best_iteration,
            "history": [list(entry) for entry in self.history],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._put(state["parameters"])
        if self._adam is not None:
            self._adam.load_state_dict(state["adam"])
        self.iteration, self.ended = state["iteration"], state["stopped"]
        self._best, self.best_loss, self.best_iteration = state["best"], state["best_loss"], state["best_iteration"]
        self.history = [(int(iteration), float(loss)) for iteration, loss in state["history"]]


def _endless(settings: FitSettings) -> tuple[object, ...]:
    """The settings that the result depends on: all but the budget."""
    return tuple(getattr(settings, name) for name in settings.__dataclass_fields__ if name != "budget_seconds")
