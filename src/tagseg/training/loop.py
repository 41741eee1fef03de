"""The one training loop: deterministic batches, precision, checkpoints, what happens at NaN or full memory."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from tagseg.disk import write_atomic
from tagseg.store import Work
from tagseg.training import checkpoint
from tagseg.training.checkpoint import State
from tagseg.training.memory import keep_freed
from tagseg.training.schedule import Auto, Schedule, rate_factor, steps
from tagseg.types import EnvironmentFault, IntegrityError, Interrupted

Batch = dict[str, Tensor]
SKIPS = 3


class Objective(Protocol):
    """A loss as a sum and its normaliser, so that splitting a batch over micro-batches or ranks changes nothing."""

    def count(self, batch: Batch) -> float:
        """The normaliser of the whole batch: labelled pixels, or tags."""

    def total(self, model: nn.Module, batch: Batch) -> Tensor:
        """The summed loss of (a part of) the batch, a scalar."""


@dataclass
class Task:
    """What is trained: the model, its optimiser, the batch of each step (a pure function of the step), the loss."""

    model: nn.Module
    optimiser: torch.optim.Optimizer
    batch: Callable[[int], Batch]
    objective: Objective
    steps: int
    seed: int
    device: str
    precision: str
    names: Callable[[int], list[str]] = lambda step: []
    enough: Callable[[list[list[float]]], str | None] = lambda history: None  # a reason to stop early, given the losses


class Settings(Protocol):
    """What the config of every stage that trains holds: `Training` and a schedule."""

    @property
    def schedule(self) -> Schedule: ...
    @property
    def seed(self) -> int | Auto: ...
    @property
    def device(self) -> str: ...
    @property
    def precision(self) -> str: ...


def learn(
    work: Work,
    cfg: Settings,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    batch: Callable[[int], Batch],
    objective: Objective,
    images: int,
    names: Callable[[int], list[str]],
) -> list[float]:
    """`fit` as a stage's config says, for a set of so many images; `names`: the ids of a step's batch. The losses."""
    length = steps(cfg.schedule, images)
    task = Task(model, optimiser, batch, objective, length, int(cfg.seed), cfg.device, cfg.precision, names)
    return [loss for _, loss, _ in fit(work, task, cfg.schedule)]


def fit(work: Work, task: Task, schedule: Schedule) -> list[list[float]]:
    """Train to the last step, going on from the newest checkpoint; gives and writes (`history.json`) its history,
    [step, loss, rate] of each.
    """
    keep_freed()
    task.model.to(task.device).train()
    state = checkpoint.restore(work.scratch, task.model, task.optimiser)
    if state.step == 0:  # something to go back to, should the first losses be no numbers
        checkpoint.write(work.scratch, task.model, task.optimiser, state)
    work.resumed_at, saved, skipped, split, reason = state.step, time.monotonic(), 0, 1, None
    while state.step < task.steps and not (reason := task.enough(state.history)):
        loss, split = _step(work, task, schedule, state, split)
        if math.isfinite(loss):
            state.history.append(
                [state.step, round(loss, 6), state.rate * rate_factor(schedule, state.step, task.steps)]
            )
            state.step, skipped = state.step + 1, 0
        else:
            state, skipped = _not_finite(work, task, state, skipped)
        if work.stopping or time.monotonic() - saved > schedule.checkpoint_seconds:
            checkpoint.write(work.scratch, task.model, task.optimiser, state)
            saved = time.monotonic()
        work.tick(state.step, task.steps, f"loss {loss:.4f}")
    if reason and (text := f"stopped after {state.step} of {task.steps} steps: {reason}") not in work.events:
        work.event(text)
    write_atomic(work.folder / "history.json", json.dumps(state.history).encode())
    task.model.eval()
    return state.history


def _step(work: Work, task: Task, schedule: Schedule, state: State, split: int) -> tuple[float, int]:
    """One optimiser step over the whole batch, in `split` micro-batches; doubled when memory does not suffice."""
    torch.manual_seed((task.seed * 1_000_003 + state.step) % 2**63)  # dropout restarts exactly
    for group in task.optimiser.param_groups:
        group["lr"] = group["initial_lr"] * state.rate * rate_factor(schedule, state.step, task.steps)
    batch = task.batch(state.step)
    while True:
        try:
            with _buffers_kept(task.model) as put_back:
                loss = _gradient_step(task, batch, split)
                if math.isnan(loss):
                    put_back()
            return loss, split
        except (torch.cuda.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_memory(error):
                raise
            size = len(next(iter(batch.values())))
            if split >= size:
                raise EnvironmentFault(
                    f"{work.stage}: one image of this size does not fit into memory on {task.device}; "
                    "lower the crop (--set ...augment.size=...) or use --device cpu"
                ) from error
            split *= 2
            work.event(f"step {state.step}: out of memory, batch of {size} now runs as {split} micro-batches")


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[Callable[[], None]]:
    """What a forward pass changes (batch norm's running statistics) can be put back, and is after an error."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]

    def put_back() -> None:
        for buffer, old in before:
            buffer.copy_(old)

    try:
        yield put_back
    except BaseException:
        put_back()
        raise


def _is_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error)


def _gradient_step(task: Task, batch: Batch, split: int) -> float:
    """Accumulate sum / count over micro-batches, then step; a loss or gradient that is no number changes nothing."""
    task.optimiser.zero_grad(set_to_none=True)
    count, loss = max(task.objective.count(batch), 1.0), 0.0
    for part in _parts(batch, split):
        on_device = {n: t.to(task.device, non_blocking=True) for n, t in part.items()}
        with precision(task.device, task.precision), _depthwise_in_full(task):
            share = task.objective.total(task.model, on_device) / count
        share.backward()
        loss += float(share.detach())
    parameters = [p for g in task.optimiser.param_groups for p in g["params"] if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters]) if parameters else torch.zeros(())
    if not (math.isfinite(loss) and bool(torch.isfinite(norm))):
        return math.nan
    task.optimiser.step()
    return loss


@contextmanager
def _depthwise_in_full(task: Task) -> Iterator[None]:
    """Within, grouped convolutions compute in float32 on a processor: in bfloat16 their backward takes so much longer
    that MobileNet as a whole learned no faster than in float32, or slower.
    """
    slow = task.precision == "bf16" and task.device == "cpu"
    convs = [part for part in task.model.modules() if slow and isinstance(part, nn.Conv2d) and part.groups > 1]
    for conv in convs:
        conv.forward = partial(_in_full, conv)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for conv in convs:
            del conv.forward


def _in_full(conv: nn.Conv2d, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return nn.Conv2d.forward(conv, x.float())


def _parts(batch: Batch, split: int) -> Iterator[Batch]:
    size = len(next(iter(batch.values())))
    width = math.ceil(size / split)
    for start in range(0, size, width):
        yield {n: t[start : start + width] for n, t in batch.items()}


def _not_finite(work: Work, task: Task, state: State, skipped: int) -> tuple[State, int]:
    """Skip the step, three in a row at most; then back to the checkpoint at half the rate, once; then give up."""
    if skipped + 1 < SKIPS:
        work.event(f"step {state.step}: the loss was not a number, step skipped")
        state.step += 1
        return state, skipped + 1
    if state.rate < 1.0:
        raise IntegrityError(
            f"{work.stage}: the loss is not a number at step {state.step}, also at half the learning rate; "
            f"lower schedule.lr, or look at its images: {', '.join(task.names(state.step)) or 'not named'}"
        )
    failed = state.step
    state = checkpoint.restore(work.scratch, task.model, task.optimiser)
    state.rate = 0.5
    checkpoint.write(work.scratch, task.model, task.optimiser, state)
    work.event(f"step {failed}: {SKIPS} losses in a row were not numbers; back to step {state.step} at half the rate")
    return state, 0


@contextmanager
def precision(device: str, name: str) -> Iterator[None]:
    """Autocast to bfloat16 where asked for; fp32 otherwise."""
    with torch.autocast(device.split(":")[0], dtype=torch.bfloat16, enabled=name == "bf16"):
        yield


__all__ = ["Batch", "Interrupted", "Objective", "Task", "fit", "learn", "precision"]
