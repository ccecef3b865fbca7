"""Whatever a training does between a save and the next: what is published is the state at the call, or nothing is."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import pickle
import random
import threading
import types
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_pre_hooks

from milepost.checkpoint import copying as copying_module
from milepost.checkpoint.arena import Arena
from milepost.checkpoint.arguments import TrainingObjects
from milepost.checkpoint.overlap import Overlap
from milepost.checkpoint.snapshot import Stager, outline
from milepost.checkpoint.state import state_of
from milepost.core.errors import StorageError
from tests.unit.checkpoint.test_snapshot import bits, read_tensors

WIDTH = 64  # weights of 16 KiB
PROBATION = 2


class Saves:
    """Saves as the checkpointer does, with the truth beside: a clone of every tensor at the call."""

    def __init__(self, objects: TrainingObjects, *, patience: float = 60.0) -> None:
        self.objects = objects
        self.said: list[str] = []
        self.overlap = Overlap(lambda _, text: self.said.append(text), patience=patience)
        self.stager, self.arena = Stager(self.overlap), Arena()
        self.published = self.wrong = self.overlapped = 0
        self.discarded: list[StorageError] = []
        self.ended = threading.Event()

    def save(self) -> None:
        self.stager.settle()
        content = outline(state_of(self.objects))
        truth = [tensor.clone() for tensor in content.tensors]
        staged = self.stager.stage(content, self.arena, self.objects)
        self.ended.clear()

        def publish(error: StorageError | None) -> None:
            if error is not None:
                self.discarded.append(error)
            else:
                self.published += 1
                stored = read_tensors(staged, self.arena)
                self.wrong += any(not torch.equal(bits(a), bits(b)) for a, b in zip(stored, truth, strict=True))
            self.ended.set()

        if staged.copying is None:
            publish(None)
        else:
            self.overlapped += 1
            staged.copying.then(publish)

    def end(self) -> None:
        self.stager.settle()
        assert self.ended.wait(60)
        self.overlap.close()


def network(*, normed: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    norm = [nn.BatchNorm1d(WIDTH)] if normed else []
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), *norm, nn.Linear(WIDTH, WIDTH))


def backward(model: nn.Module) -> None:
    model(torch.randn(8, WIDTH)).pow(2).mean().backward()


def train(model: nn.Module, *optimizers: Any) -> None:
    backward(model)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


Scenario = tuple[TrainingObjects, Callable[[], None]]


def adamw(**settings: Any) -> Scenario:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, **settings)
    return TrainingObjects(model=model, optimizer=optimizer), lambda: train(model, optimizer)


def foreach() -> Scenario:
    return adamw(foreach=True)


def fused() -> Scenario:
    return adamw(fused=True)


def fused_with_batch_norm() -> Scenario:
    model = network(normed=True)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    return TrainingObjects(model=model, optimizer=optimizer), lambda: train(model, optimizer)


def scheduled() -> Scenario:
    objects, step = fused()
    scheduler = torch.optim.lr_scheduler.LinearLR(objects.optimizer)

    def scheduled_step() -> None:
        step()
        scheduler.step()

    return TrainingObjects(model=objects.model, optimizer=objects.optimizer, scheduler=scheduler), scheduled_step


def flat_views() -> Scenario:
    model = network()
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    start = 0
    for parameter in model.parameters():
        parameter.data = flat[start : start + parameter.numel()].view(parameter.shape)
        start += parameter.numel()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    return TrainingObjects(model=model, optimizer=optimizer), lambda: train(model, optimizer)


def two_optimizers_and_an_average_by_data_before_the_step() -> Scenario:
    model = network()
    model.average = copy.deepcopy(model).requires_grad_(requires_grad=False)
    optimizers = [torch.optim.AdamW(model[0].parameters()), torch.optim.AdamW(model[2].parameters())]

    def step() -> None:
        weights = [*model[0].parameters(), *model[2].parameters()]
        for average, weight in zip(model.average.parameters(), weights, strict=True):
            average.data.lerp_(weight.data, 0.1)
        train_inner(model, optimizers)

    def train_inner(model: Any, optimizers: Any) -> None:
        model[2](model[0](torch.randn(8, WIDTH))).pow(2).mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return TrainingObjects(model=model, optimizer=optimizers[0], extra={"second": optimizers[1]}), step


def inside_of_backward() -> Scenario:
    model = network()
    optimizers = {f"{i}": torch.optim.AdamW([p], fused=True) for i, p in enumerate(model.parameters())}

    def step(_: Any, optimizer: Any) -> None:
        optimizer.step()
        optimizer.zero_grad()

    for parameter, optimizer in zip(model.parameters(), optimizers.values(), strict=True):
        parameter.register_post_accumulate_grad_hook(partial(step, optimizer=optimizer))
    return TrainingObjects(model=model, extra=optimizers), lambda: backward(model)


def scaled_with_skipped_steps() -> Scenario:
    objects, _ = adamw()
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=3)
    dice = random.Random(0)

    def step() -> None:
        loss = objects.model(torch.randn(8, WIDTH)).pow(2).mean()
        scaler.scale(loss * float("inf") if dice.random() < 0.3 else loss).backward()
        scaler.step(objects.optimizer)
        scaler.update()
        objects.optimizer.zero_grad()

    return TrainingObjects(model=objects.model, optimizer=objects.optimizer, scaler=scaler), step


def closures() -> Scenario:
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.01, max_iter=3)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.ones(8, WIDTH)).pow(2).mean()
        loss.backward()
        return loss

    return TrainingObjects(model=model, optimizer=optimizer), lambda: optimizer.step(closure) and None


@pytest.mark.parametrize(
    "scenario",
    [
        foreach,
        fused,
        fused_with_batch_norm,
        scheduled,
        flat_views,
        two_optimizers_and_an_average_by_data_before_the_step,
        inside_of_backward,
        scaled_with_skipped_steps,
        closures,
    ],
    ids=lambda scenario: scenario.__name__,
)
def test_a_training_that_steps_through_torch_overlaps_and_every_save_is_right(scenario: Callable[[], Scenario]) -> None:
    objects, step = scenario()
    for _ in range(2):
        step()
    saves = Saves(objects)
    for _ in range(12):
        saves.save()
        step()
    saves.end()

    assert (saves.published, saves.wrong, saves.discarded, saves.overlap.banned) == (12, 0, [], "")
    assert saves.overlapped >= (6 if scenario is scaled_with_skipped_steps else 10)


class ByHand:
    """No optimizer of torch."""

    def __init__(self, parameters: Any) -> None:
        self.parameters = list(parameters)

    def step(self) -> None:
        for parameter in self.parameters:
            parameter.data.add_(parameter.grad, alpha=-0.1)

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def clamped_before_forward() -> Scenario:
    objects, step = adamw()

    def clamp() -> None:
        for parameter in objects.model.parameters():
            parameter.data.clamp_(-0.02, 0.02)
        step()

    return objects, clamp


def one_row_by_data_at_each_step() -> Scenario:
    objects, step = adamw()

    def write() -> None:
        objects.model[0].weight.data[3].add_(0.1)
        step()

    return objects, write


def stepped_by_hand() -> Scenario:
    model = network()
    optimizer = ByHand(model.parameters())
    return TrainingObjects(model=model), lambda: train(model, optimizer)


def step_replaced_on_the_instance() -> Scenario:
    objects, step = fused()
    unhooked = type(objects.optimizer).step.__wrapped__
    objects.optimizer.step = types.MethodType(unhooked, objects.optimizer)
    return objects, step


def an_optimizer_that_was_never_shown() -> Scenario:
    objects, step = fused()
    return TrainingObjects(model=objects.model), step


def another_optimizer_beside_the_one_shown() -> Scenario:
    objects, _ = fused()
    hidden = ByHand(objects.model.parameters())
    return objects, lambda: train(objects.model, hidden)


def loaded_between() -> Scenario:
    objects, step = adamw()

    def load() -> None:
        objects.model.load_state_dict({name: value * 1.01 for name, value in objects.model.state_dict().items()})
        step()

    return objects, load


def numpy_beside() -> Scenario:
    objects, step = fused()
    array = objects.model[0].weight.detach().numpy()

    def write() -> None:
        array[:] *= 0.99
        step()

    return objects, write


def embedding_with_max_norm() -> Scenario:
    model = nn.Sequential(nn.Embedding(100, WIDTH, max_norm=0.5), nn.Linear(WIDTH, WIDTH))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

    def step() -> None:
        model(torch.randint(0, 100, (50,))).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return TrainingObjects(model=model, optimizer=optimizer), step


@pytest.mark.parametrize(
    "scenario",
    [
        clamped_before_forward,
        one_row_by_data_at_each_step,
        stepped_by_hand,
        step_replaced_on_the_instance,
        an_optimizer_that_was_never_shown,
        another_optimizer_beside_the_one_shown,
        loaded_between,
        numpy_beside,
        embedding_with_max_norm,
    ],
    ids=lambda scenario: scenario.__name__,
)
def test_a_training_that_writes_past_its_optimizer_gets_no_wrong_save(scenario: Callable[[], Scenario]) -> None:
    objects, step = scenario()
    for _ in range(2):
        step()
    saves = Saves(objects)
    for _ in range(8):
        saves.save()
        step()
    saves.end()

    assert (saves.published, saves.wrong) == (8, 0)
    embedding_is_never_postponed = scenario is embedding_with_max_norm
    assert saves.overlap.banned or not saves.overlapped or embedding_is_never_postponed
    assert len(saves.said) == bool(saves.overlap.banned)


@pytest.fixture(autouse=True)
def no_hooks_of_others() -> None:
    """What an earlier test saved with may be part of a cycle; its hook goes with it."""
    gc.collect()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Copies of the copying thread begin when it is set."""
    opened = threading.Event()
    move = copying_module._move

    def gated(shares: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            assert opened.wait(60)
        move(shares)

    monkeypatch.setattr(copying_module, "_move", gated)
    yield opened
    opened.set()


def trusted(scenario: Callable[[], Scenario] = fused, **settings: Any) -> tuple[Saves, Callable[[], None]]:
    """A training that is past its probation."""
    objects, step = scenario()
    step()
    saves = Saves(objects, **settings)
    for _ in range(PROBATION):
        saves.save()
        step()
    assert not saves.overlap.on_probation
    return saves, step


def test_a_step_waits_for_the_copy(gate: threading.Event) -> None:
    saves, step = trusted()
    saves.save()
    before = saves.objects.model[0].weight.clone()
    stepping = threading.Thread(target=step)
    stepping.start()
    stepping.join(0.05)
    assert stepping.is_alive()
    assert torch.equal(saves.objects.model[0].weight, before)

    gate.set()
    stepping.join(60)
    saves.end()
    assert not torch.equal(saves.objects.model[0].weight, before)
    assert (saves.published, saves.wrong) == (3, 0)


def sabotaged_hook(saves: Saves, step: Callable[[], None]) -> None:
    saves.overlap.close()
    step()


def dense_data(saves: Saves, _: Any) -> None:
    saves.objects.model[0].weight.data.mul_(0.9)


def dense_numpy(saves: Saves, _: Any) -> None:
    saves.objects.model[0].weight.detach().numpy()[:] *= 0.9


def counted_row(saves: Saves, _: Any) -> None:
    with torch.no_grad():
        saves.objects.model[0].weight[3, 3] += 1


def freed(saves: Saves, _: Any) -> None:
    saves.objects.model[0].weight.untyped_storage().resize_(0)


@pytest.mark.parametrize("change", [sabotaged_hook, dense_data, dense_numpy, counted_row, freed])
def test_a_torn_snapshot_is_discarded_said_once_and_ends_the_overlap(change: Any, gate: threading.Event) -> None:
    saves, step = trusted()
    saves.save()
    change(saves, step)
    gate.set()
    assert saves.ended.wait(60)

    assert (saves.published, saves.wrong) == (2, 0)
    assert [error.kind for error in saves.discarded] == ["torn"]
    assert "model.0.weight was changed" in saves.overlap.banned
    if change is not freed:
        saves.save()
        assert (saves.published, saves.wrong, saves.overlapped) == (3, 0, 1)
    assert len(saves.said) == 1
    assert not _global_optimizer_pre_hooks or change is freed
    saves.overlap.close()


def test_a_state_that_moves_without_any_hook_is_noticed_at_the_next_save() -> None:
    saves, step = trusted()
    saves.save()
    assert saves.ended.wait(60)
    sabotaged_hook(saves, step)
    saves.save()

    assert "no optimizer's step announced it" in saves.overlap.banned
    assert (saves.published, saves.wrong, saves.overlapped) == (4, 0, 1)


def test_a_copy_that_fails_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    saves, step = trusted()
    move = copying_module._move

    def failing(shares: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise MemoryError("no room")
        move(shares)

    monkeypatch.setattr(copying_module, "_move", failing)
    saves.save()
    step()
    assert saves.ended.wait(60)
    assert "no room" in saves.discarded[0].what

    saves.save()
    step()
    saves.end()
    assert "no room" in saves.overlap.banned
    assert (saves.published, saves.wrong, saves.overlapped) == (3, 0, 1)


def test_a_step_waits_a_bounded_time_and_what_comes_later_is_discarded(gate: threading.Event) -> None:
    saves, step = trusted(patience=0.01)
    saves.save()
    step()
    assert "waited 0.01 seconds" in saves.overlap.banned
    with pytest.raises(StorageError, match="was not done within"):
        saves.save()

    gate.set()
    assert saves.ended.wait(60)
    assert (saves.published, len(saves.discarded)) == (2, 1)
    saves.save()
    assert (saves.published, saves.wrong) == (3, 0)


def test_settling_waits_for_the_copy(gate: threading.Event) -> None:
    saves, _ = trusted()
    saves.save()
    settling = threading.Thread(target=saves.stager.settle)
    settling.start()
    settling.join(0.05)
    assert settling.is_alive()
    gate.set()
    settling.join(60)
    saves.end()
    assert (saves.published, saves.wrong) == (3, 0)


def test_a_forked_child_neither_waits_nor_compares(gate: threading.Event) -> None:
    saves, _ = trusted()
    saves.save()

    def child() -> None:  # not a whole step: the threads of torch do not survive a fork
        saves.overlap.before_step()
        saves.stager.settle()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    gate.set()
    saves.end()
    assert (saves.published, saves.wrong) == (3, 0)


def test_optimizers_are_left_as_they_were(gate: threading.Event) -> None:
    saves, _ = trusted()
    saves.save()
    gate.set()
    optimizer = saves.objects.optimizer

    copy.deepcopy(optimizer).step()
    pickle.loads(pickle.dumps(optimizer)).step()
    assert not optimizer._optimizer_step_pre_hooks
    saves.end()
    assert not _global_optimizer_pre_hooks


def test_what_may_change_at_any_time_is_copied_before_the_return(gate: threading.Event) -> None:
    saves, _ = trusted(fused_with_batch_norm)
    saves.save()
    for name, buffer in saves.objects.model.named_buffers():
        buffer.zero_()
        assert name
    for state in saves.objects.optimizer.state.values():
        state["step"].zero_()
    gate.set()
    saves.end()
    assert (saves.published, saves.wrong) == (3, 0)


def test_an_optimizer_for_captured_graphs_is_copied_at_once() -> None:
    objects, step = adamw(foreach=True)
    step()
    objects.optimizer.param_groups[0]["capturable"] = True
    saves = Saves(objects)
    for _ in range(5):
        saves.save()
    assert (saves.published, saves.overlapped) == (5, 0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler uses what torch deprecates
def test_a_compiled_step_waits_too() -> None:
    objects, _ = adamw(foreach=True)
    compiled = torch.compile(objects.optimizer.step, backend="eager")

    def step() -> None:
        backward(objects.model)
        compiled()
        objects.optimizer.zero_grad()

    step()
    saves = Saves(objects)
    for _ in range(8):
        saves.save()
        step()
    saves.end()
    assert (saves.published, saves.wrong, saves.overlapped, saves.overlap.banned) == (8, 0, 6, "")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_device_memory_is_copied_behind_the_training_and_before_its_next_step() -> None:
    model = network().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    objects = TrainingObjects(model=model, optimizer=optimizer)
    saves = Saves(objects)
    for _ in range(5):
        saves.save()
        model(torch.randn(8, WIDTH, device="cuda")).pow(2).mean().backward()
        optimizer.step()
    saves.end()
    assert (saves.published, saves.wrong, saves.overlapped) == (5, 0, 5)
