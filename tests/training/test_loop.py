"""The loop goes on after kill -9 with the same bytes, splits batches exactly, and survives NaN and full memory."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import toy_training
from tagseg.store import Run, Work
from tagseg.training import checkpoint
from tagseg.training.loop import Batch, Task, _gradient_step, fit
from tagseg.types import IGNORE, EnvironmentFault, IntegrityError, Interrupted
from toy_training import PixelLoss, batch, schedule, task

HERE = Path(toy_training.__file__).parent


def work_in(folder: Path, stopping: Callable[[], bool] = lambda: False) -> Work:
    (folder / "half-done").mkdir(parents=True, exist_ok=True)
    return Work(Run(folder, stopping=stopping), "toy.train", folder)


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in model.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[n], b[n]) for n in a)


def counted(steps: list[int]) -> Callable[[int], Batch]:
    """The batches, each step noted in the list."""

    def make(step: int) -> Batch:
        steps.append(step)
        return batch(step)

    return make


# ---- going on ----

def test_killed_in_the_middle_it_goes_on_and_gives_the_same_bytes(tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    whole = toy_training.train(Run(tmp_path / "whole"), toy_training.Config())
    log, cache = tmp_path / "log", tmp_path / "killed"
    environment = {**os.environ, "TOY_LOG": str(log), "TOY_KILL_AT": "7", "OMP_NUM_THREADS": "1",
                   "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)])}
    done = subprocess.run([sys.executable, str(HERE / "toy_training.py"), str(cache)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert log.read_text().splitlines() == [f"step {s}" for s in range(8)]  # the kill was inside the body
    assert [p.name for p in cache.glob("*.partial")] == [f"{whole.path.name}.partial"]

    monkeypatch.setenv("TOY_LOG", str(log))
    log.unlink()
    resumed = toy_training.train(Run(cache), toy_training.Config())
    assert log.read_text().splitlines() == [*(f"step {s}" for s in range(7, 12)), "resumed at 7"]
    assert resumed.record["outputs"] == whole.record["outputs"]
    assert equal(resumed.tensors(), whole.tensors())
    assert [row[0] for row in json.loads((resumed.path / "history.json").read_text())] == list(range(12))


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("stop", [1, 5])
def test_interrupted_it_writes_a_checkpoint_and_goes_on(tmp_path: Path, kind: str, stop: int) -> None:
    rates = schedule(checkpoint_seconds=1e9, kind=kind)
    whole = task(rates=rates)
    fit(work_in(tmp_path / "whole"), whole, rates)

    steps: list[int] = []
    first = task(rates=rates, batches=counted(steps))
    with pytest.raises(Interrupted, match=f"toy.train at {stop} of 12.*same command"):
        fit(work_in(tmp_path / "cut", stopping=lambda: len(steps) == stop), first, rates)
    second, work = task(rates=rates), work_in(tmp_path / "cut")
    second.model.load_state_dict({n: torch.zeros_like(t) for n, t in second.model.state_dict().items()})
    fit(work, second, rates)
    assert work.resumed_at == stop
    assert equal(weights_of(second.model), weights_of(whole.model))
    assert (tmp_path / "cut" / "history.json").read_bytes() == (tmp_path / "whole" / "history.json").read_bytes()


def test_without_interruption_only_the_start_is_a_checkpoint(tmp_path: Path) -> None:
    fit(work_in(tmp_path), task(3), schedule(checkpoint_seconds=1e9))
    assert [p.name for p in tmp_path.glob("half-done/checkpoint-*.json")] == ["checkpoint-00000000.json"]


def test_afterwards_the_model_is_in_eval_mode_and_has_learned(tmp_path: Path) -> None:
    same_batch = task(60, dropout=0.0, batches=lambda step: batch(0))
    fit(work_in(tmp_path), same_batch, schedule())
    losses = [loss for _, loss, _ in json.loads((tmp_path / "history.json").read_text())]
    assert not same_batch.model.training
    assert losses[0] == pytest.approx(math.log(3), abs=0.3)
    assert losses[-1] < 0.9 * losses[0]


# ---- micro-batches ----

def gradients(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.ravel() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("split", [2, 3, 4, 6])
def test_micro_batches_give_the_gradient_of_the_whole_batch(split: int) -> None:
    whole, parts = task(dropout=0.0), task(dropout=0.0)
    loss, loss_in_parts = _gradient_step(whole, batch(0), 1), _gradient_step(parts, batch(0), split)
    assert loss_in_parts == pytest.approx(loss, abs=1e-6)
    assert torch.allclose(gradients(whole.model), gradients(parts.model), atol=1e-7)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_grouped_convolutions_compute_in_full_and_the_others_as_asked(precision: str) -> None:
    made = task(dropout=0.0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 3, 1))
    made.model, made.precision = model, precision
    made.optimiser = torch.optim.SGD(model.parameters(), lr=0.0)
    seen = list[torch.dtype]()
    for part in model:
        part.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    assert math.isfinite(_gradient_step(made, batch(0), 1))
    asked = torch.bfloat16 if precision == "bf16" else torch.float32
    assert seen == [asked, torch.float32, asked]
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    assert not any("forward" in vars(part) for part in model)  # nothing stays behind
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(batch(0)["images"]).dtype == torch.bfloat16


def test_a_mean_of_micro_batch_means_would_not() -> None:
    whole, naive = task(dropout=0.0), task(dropout=0.0)
    _gradient_step(whole, batch(0), 1)
    for start in (0, 3):
        part = {n: t[start : start + 3] for n, t in batch(0).items()}
        (naive.objective.total(naive.model, part) / naive.objective.count(part) / 2).backward()
    assert not torch.allclose(gradients(whole.model), gradients(naive.model), atol=1e-4)


# ---- memory ----

class Memory:
    """Memory for so many images at once; `times` bounds how often it is found full."""

    def __init__(self, images: int, error: BaseException) -> None:
        self.images, self.error, self.refused = images, error, 0

    def __call__(self, part: Batch) -> None:
        if len(part["images"]) > self.images:
            self.refused += 1
            raise self.error


@pytest.mark.parametrize("error", [MemoryError(), torch.cuda.OutOfMemoryError("full"),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_out_of_memory_splits_the_batch_once_and_says_so(tmp_path: Path, error: BaseException) -> None:
    whole = task(4, dropout=0.0, rates=schedule(kind="sgd"))
    fit(work_in(tmp_path / "whole"), whole, schedule(kind="sgd"))
    memory, work = Memory(2, error), work_in(tmp_path / "split")
    split = task(4, dropout=0.0, rates=schedule(kind="sgd"), objective=PixelLoss(memory))
    fit(work, split, schedule(kind="sgd"))
    assert memory.refused == 2  # 6 images, then 3; after that 2 for good
    assert work.events == ["step 0: out of memory, batch of 6 now runs as 2 micro-batches",
                           "step 0: out of memory, batch of 6 now runs as 4 micro-batches"]
    for name, tensor in whole.model.state_dict().items():
        assert torch.allclose(tensor, split.model.state_dict()[name], atol=1e-6)


def test_one_image_that_does_not_fit_is_an_error_with_the_setting(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match=r"one image .*augment\.size") as caught:
        fit(work_in(tmp_path), task(4, objective=PixelLoss(Memory(0, MemoryError()))), schedule())
    assert caught.value.exit_code == 4


def test_other_runtime_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shape"):
        fit(work_in(tmp_path), task(4, objective=PixelLoss(Memory(0, RuntimeError("wrong shape")))), schedule())


# ---- losses that are no numbers ----

def poisoned(*steps: int, times: int = 10**9) -> Callable[[int], Batch]:
    """Batches of which some steps hold NaN, the first `times` times that they are asked for."""
    asked = 0

    def make(step: int) -> Batch:
        nonlocal asked
        made = batch(step)
        if step in steps and asked < times:
            asked += 1
            made["images"][0, 0, 0, 0] = math.nan
            made["labels"][0, 0, 0] = 0
        return made

    return make


def test_one_loss_that_is_no_number_skips_its_step(tmp_path: Path) -> None:
    work, trained = work_in(tmp_path), task(batches=poisoned(4))
    fit(work, trained, schedule())
    history = json.loads((tmp_path / "history.json").read_text())
    assert work.events == ["step 4: the loss was not a number, step skipped"]
    assert [row[0] for row in history] == [s for s in range(12) if s != 4]
    assert all(math.isfinite(x) for row in history for x in row)
    assert all(torch.isfinite(t).all() for t in trained.model.state_dict().values())


def test_a_skipped_step_changes_nothing() -> None:
    one = task()
    before = weights_of(one.model)
    assert math.isnan(_gradient_step(one, poisoned(0)(0), 1))
    assert equal(weights_of(one.model), before)
    assert not one.optimiser.state


def normed(made: Task) -> Task:
    """The same task with a batch norm in its network."""
    assert isinstance(made.model, nn.Sequential)
    made.model.insert(1, nn.BatchNorm2d(8))
    return made


def test_a_skipped_step_leaves_running_statistics_alone(tmp_path: Path) -> None:
    trained = normed(task(batches=poisoned(4)))
    fit(work_in(tmp_path), trained, schedule())
    assert all(torch.isfinite(t).all() for t in trained.model.state_dict().values())
    assert int(trained.model.state_dict()["1.num_batches_tracked"]) == 11


def test_a_try_that_fails_for_memory_leaves_running_statistics_alone(tmp_path: Path) -> None:
    class Late(PixelLoss):
        def total(self, model: nn.Module, batch: Batch) -> torch.Tensor:
            loss = super().total(model, batch)
            if len(batch["images"]) > 3:
                raise MemoryError
            return loss

    trained = normed(task(1, objective=Late()))
    fit(work_in(tmp_path), trained, schedule())
    assert int(trained.model.state_dict()["1.num_batches_tracked"]) == 2  # the two halves


def test_an_infinite_gradient_with_a_finite_loss_is_no_step_either() -> None:
    class Sharp(PixelLoss):
        def total(self, model: nn.Module, batch: Batch) -> torch.Tensor:
            weight = next(model.parameters())
            return super().total(model, batch) + torch.sqrt((weight - weight.detach()).sum().abs())

    one = task(objective=Sharp())
    before = weights_of(one.model)
    assert math.isnan(_gradient_step(one, batch(0), 1))
    assert equal(weights_of(one.model), before)


def test_two_in_a_row_are_skipped_and_the_count_starts_again(tmp_path: Path) -> None:
    work = work_in(tmp_path)
    fit(work, task(batches=poisoned(2, 3, 5, 6)), schedule(checkpoint_seconds=1e9))
    assert len(work.events) == 4


def test_three_in_a_row_go_back_to_the_checkpoint_at_half_the_rate(tmp_path: Path) -> None:
    work, rates = work_in(tmp_path), schedule()
    fit(work, task(batches=poisoned(5, 6, 7, times=3), rates=rates), rates)
    assert work.events[-1].startswith("step 7: 3 losses in a row were not numbers; back to step ")
    back = int(work.events[-1].split("back to step ")[1].split()[0])
    assert back in (6, 7)  # a checkpoint was written after the first or second skipped step
    history = json.loads((tmp_path / "history.json").read_text())
    assert [row[0] for row in history] == [s for s in range(12) if s not in range(5, back)]
    full = task(rates=rates)
    fit(work_in(tmp_path / "full"), full, rates)
    normal = {row[0]: row[2] for row in json.loads((tmp_path / "full" / "history.json").read_text())}
    assert all(row[2] == pytest.approx(normal[row[0]] * (0.5 if row[0] >= back else 1)) for row in history)


def test_when_half_the_rate_does_not_help_it_gives_up(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"not a number at step .* half the learning rate") as caught:
        fit(work_in(tmp_path), task(batches=poisoned(*range(5, 12))), schedule())
    assert caught.value.exit_code == 5


def test_the_first_losses_go_back_to_the_start_at_half_the_rate(tmp_path: Path) -> None:
    work = work_in(tmp_path)
    fit(work, task(batches=poisoned(1, 2, 3, times=3)), schedule(checkpoint_seconds=1e9))
    assert work.events[-1].endswith("back to step 0 at half the rate")


def test_giving_up_names_the_images(tmp_path: Path) -> None:
    doomed = task(batches=poisoned(*range(1, 8)))
    doomed.names = lambda step: [f"photo-{step}"]
    with pytest.raises(IntegrityError, match=r"half the learning rate.*photo-\d"):
        fit(work_in(tmp_path), doomed, schedule(checkpoint_seconds=1e9))


def test_a_batch_without_any_labelled_pixel_has_loss_zero(tmp_path: Path) -> None:
    empty = batch(0)
    empty["labels"] = torch.full_like(empty["labels"], IGNORE)
    assert _gradient_step(task(), empty, 1) == 0.0
    work, trained = work_in(tmp_path), task(3, batches=lambda step: empty)
    fit(work, trained, schedule())
    assert work.events == []
    assert [row[1] for row in json.loads((tmp_path / "history.json").read_text())] == [0.0] * 3
    assert all(torch.isfinite(t).all() for t in trained.model.state_dict().values())


def test_the_newest_checkpoint_damaged_the_one_before_is_used_and_the_result_is_the_same(tmp_path: Path) -> None:
    whole = task()
    fit(work_in(tmp_path / "whole"), whole, schedule())
    steps: list[int] = []
    cut = task(batches=counted(steps))
    with pytest.raises(Interrupted):
        fit(work_in(tmp_path / "cut", stopping=lambda: len(steps) == 6), cut, schedule())
    newest = sorted((tmp_path / "cut" / "half-done").glob("*.safetensors"))[-1]
    data = bytearray(newest.read_bytes())
    data[-5] ^= 1  # one bit
    newest.write_bytes(bytes(data))
    work, resumed = work_in(tmp_path / "cut"), task()
    fit(work, resumed, schedule())
    assert work.resumed_at == 5
    assert equal(weights_of(resumed.model), weights_of(whole.model))
    assert len(list((tmp_path / "cut" / "half-done").glob("*.json"))) == 2
    assert checkpoint.restore(tmp_path / "cut" / "half-done", resumed.model, resumed.optimiser).step == 12
