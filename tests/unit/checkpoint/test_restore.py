"""A training that is saved, forgotten and restored must compute the same numbers as one that never stopped."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from milepost.checkpoint.arguments import TrainingObjects
from milepost.checkpoint.checkpointer import ModelCheckpointer
from milepost.checkpoint.loading import load_state
from milepost.checkpoint.restore import restore, resume_objects
from milepost.checkpoint.state import capture
from milepost.core.config import ExperimentConfig
from milepost.core.errors import InvalidInputError

FORMATS = ("milepost", "pt", "pt.gz", "safetensors")


class LSTMTagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 8)
        self.lstm = nn.LSTM(8, 8, 2, dropout=0.3, batch_first=True)
        self.head = nn.Linear(8, 32)
        self.head.weight = self.embedding.weight  # tied

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.embedding(tokens))[0])


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.encoder(self.embedding(tokens))


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1))
        self.net.to(memory_format=torch.channels_last)
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        images = tokens.float().view(-1, 1, 4, 4).expand(-1, 3, 4, 4)
        return self.net(images)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01, foreach=False)


def amsgrad(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01, amsgrad=True)


def adagrad(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(parameters, lr=0.05)


def lbfgs(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(list(parameters), lr=0.1, max_iter=3, history_size=4)


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def build(model: type[nn.Module], optimizer: Callable[[Any], torch.optim.Optimizer]) -> TrainingObjects:
    net = model()
    stepper = optimizer(net.parameters())
    return TrainingObjects(
        model=net, optimizer=stepper, scheduler=torch.optim.lr_scheduler.MultiStepLR(stepper, [2, 5], 0.5)
    )


def train(objects: TrainingObjects, steps: int) -> list[float]:
    """Losses of some steps on data drawn from all three generators, so that each of them matters."""
    losses = []
    for _ in range(steps):
        tokens = torch.randint(0, 32, (4, 16)) + random.randint(0, 3) + int(np.random.randint(0, 3))
        tokens = tokens.clamp(max=31)

        def closure(tokens: torch.Tensor = tokens) -> torch.Tensor:
            objects.optimizer.zero_grad()
            loss = objects.model(tokens).float().square().mean()
            loss.backward()
            return loss.detach()

        losses.append(objects.optimizer.step(closure).item())
        objects.scheduler.step()
    return losses


def assert_same(one: Any, other: Any, place: str = "state") -> None:
    assert type(one) is type(other), place
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, place
        assert one.stride() == other.stride(), place
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_same(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), place
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_same(left, right, f"{place}[{index}]")
    elif isinstance(one, np.ndarray):
        assert np.array_equal(one, other), place
    else:
        assert one == other, place


def state_of(objects: TrainingObjects) -> dict[str, Any]:
    return capture(objects.model, objects.optimizer, objects.scheduler)


def checkpointer(folder: Path, **settings: Any) -> ModelCheckpointer:
    return ModelCheckpointer(ExperimentConfig(root=str(folder), **settings))


def save(folder: Path, objects: TrainingObjects, *, checkpoint_format: str = "milepost", **more: Any) -> Path:
    saver = checkpointer(folder, checkpoint_format=checkpoint_format)
    path = saver.save_checkpoint(objects.model, objects.optimizer, objects.scheduler, step=3, **more)
    saver.wait()
    return Path(str(path))


PAIRS = [
    (model, optimizer) for model in (LSTMTagger, Transformer) for optimizer in (adamw, sgd, amsgrad, adagrad, lbfgs)
]
PAIRS += [(Convolutional, adamw), (Convolutional, sgd)]  # LBFGS refuses channels_last


@pytest.mark.parametrize(("model", "optimizer"), PAIRS)
def test_a_resumed_training_repeats_the_losses_of_one_that_never_stopped(
    tmp_path: Path, model: type[nn.Module], optimizer: Callable[[Any], torch.optim.Optimizer]
) -> None:
    seed_all(1)
    never_stopped = build(model, optimizer)
    train(never_stopped, 3)
    path = save(tmp_path, never_stopped)
    wanted = train(never_stopped, 4)

    seed_all(2)
    resumed = build(model, optimizer)
    report = resume_objects(path, resumed.model, resumed.optimizer, resumed.scheduler)

    assert report.notes == ()
    assert train(resumed, 4) == wanted
    assert_same(state_of(resumed), state_of(never_stopped))


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_restores_bit_for_bit(tmp_path: Path, kind: str) -> None:
    seed_all(1)
    saved = build(LSTMTagger, adamw)
    train(saved, 2)
    wanted = copy.deepcopy(state_of(saved))
    path = save(tmp_path, saved, checkpoint_format=kind)

    seed_all(2)
    loaded = build(LSTMTagger, adamw)
    resume_objects(path, loaded.model, loaded.optimizer, loaded.scheduler)

    assert_same(state_of(loaded), wanted)
    assert loaded.model.head.weight is loaded.model.embedding.weight


def test_state_that_is_there_is_filled_in_place(tmp_path: Path) -> None:
    objects = build(Transformer, adamw)
    train(objects, 2)
    path = save(tmp_path, objects)
    wanted = copy.deepcopy(state_of(objects))
    before = {id(value) for state in objects.optimizer.state.values() for value in state.values()}
    train(objects, 2)

    restore(load_state(path).state, objects)

    assert {id(value) for state in objects.optimizer.state.values() for value in state.values()} == before
    assert_same(state_of(objects)["optimizer"], wanted["optimizer"])


def half_precision_with_wide_moments() -> TrainingObjects:
    objects = build(Transformer, adamw)
    objects.model.bfloat16()
    for parameter in objects.model.parameters():
        state = objects.optimizer.state[parameter]
        state["step"] = torch.tensor(7.0)
        state["exp_avg"] = torch.randn(parameter.shape)
        state["exp_avg_sq"] = torch.rand(parameter.shape)
    return objects


@pytest.mark.parametrize("filled", [True, False])
def test_wide_moments_of_narrow_parameters_are_not_rounded(tmp_path: Path, filled: bool) -> None:
    saved = half_precision_with_wide_moments()
    wanted = copy.deepcopy(state_of(saved)["optimizer"])
    path = save(tmp_path, saved)
    loaded = half_precision_with_wide_moments() if filled else build(Transformer, adamw)
    loaded.model.bfloat16()

    restore(load_state(path).state, loaded)

    assert_same(state_of(loaded)["optimizer"], wanted)


def test_the_optimizer_does_not_keep_the_tensors_it_was_given() -> None:
    saved = build(Transformer, sgd)
    train(saved, 1)
    state = copy.deepcopy(state_of(saved))
    untouched = copy.deepcopy(state)
    loaded = build(Transformer, sgd)

    restore(state, loaded)
    train(loaded, 2)

    assert_same(state["optimizer"], untouched["optimizer"])


def test_optimizer_state_follows_the_names_when_the_order_of_parameters_changed() -> None:
    saved = build(Transformer, adamw)
    train(saved, 2)
    state = copy.deepcopy(state_of(saved))
    loaded = Transformer()
    backwards = torch.optim.AdamW(reversed(list(loaded.parameters())), lr=0.01, foreach=False)

    restore(state, TrainingObjects(model=loaded, optimizer=backwards))

    names = dict(loaded.named_parameters())
    for name, parameter in saved.model.named_parameters():
        assert_same(dict(backwards.state[names[name]]), dict(saved.optimizer.state[parameter]))


def test_without_a_model_the_optimizer_is_matched_by_order() -> None:
    saved = build(Transformer, adamw)
    train(saved, 2)
    state = copy.deepcopy(state_of(saved))
    loaded = build(Transformer, adamw)

    restore(state, TrainingObjects(optimizer=loaded.optimizer))

    assert_same(loaded.optimizer.state_dict()["state"], saved.optimizer.state_dict()["state"])


def test_how_the_step_is_computed_stays_and_is_said() -> None:
    saved = build(Transformer, adamw)
    train(saved, 1)
    loaded = Transformer()
    fused = torch.optim.AdamW(loaded.parameters(), lr=0.5, foreach=True, weight_decay=0.3)

    report = restore(copy.deepcopy(state_of(saved)), TrainingObjects(model=loaded, optimizer=fused))

    assert fused.param_groups[0]["foreach"] is True
    assert fused.param_groups[0]["lr"] == 0.01
    assert report.notes == (
        "optimizer group 0: foreach=True stays, the checkpoint had False",
        "optimizer group 0: weight_decay was 0.3, the checkpoint set it to 0.01",
    )


def test_a_learning_rate_that_is_a_tensor_stays_the_same_tensor() -> None:
    def tensor_rate(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=torch.tensor(0.01), foreach=False)

    saved = build(Transformer, tensor_rate)
    train(saved, 1)
    state = copy.deepcopy(state_of(saved))
    saved.optimizer.param_groups[0]["lr"].fill_(9.0)
    rate = saved.optimizer.param_groups[0]["lr"]

    restore(state, saved)

    assert saved.optimizer.param_groups[0]["lr"] is rate
    assert_same(rate, torch.tensor(0.01))


def test_parameters_outside_the_model_come_back_too(tmp_path: Path) -> None:
    def two_parts() -> tuple[nn.Linear, nn.Linear, torch.optim.Optimizer]:
        model, loss = nn.Linear(2, 2), nn.Linear(2, 1)
        return model, loss, torch.optim.AdamW([*model.parameters(), *loss.parameters()])

    model, loss, optimizer = two_parts()
    loss(model(torch.randn(3, 2))).sum().backward()
    optimizer.step()
    path = save(tmp_path, TrainingObjects(model=model, optimizer=optimizer))
    new_model, new_loss, new_optimizer = two_parts()

    checkpointer(tmp_path).load_checkpoint(path, new_model, new_optimizer)

    assert_same(dict(new_loss.state_dict()), dict(loss.state_dict()))
    assert_same(new_optimizer.state_dict()["state"], optimizer.state_dict()["state"])
    assert "optimizer.param_groups[0].params[2]" in load_state(path).state["parameters"]


class FakeGroup:
    """A process group of one, over a file."""

    def __init__(self, folder: Path) -> None:
        self.store = folder / "store"

    def __enter__(self) -> None:
        torch.distributed.init_process_group("gloo", init_method=f"file://{self.store}", rank=0, world_size=1)

    def __exit__(self, *_: object) -> None:
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def wrapped(kind: str, folder: Path, model: nn.Module) -> Iterator[nn.Module]:
    if kind == "compiled":
        yield torch.compile(model, backend="eager")
    elif kind == "parallel":
        yield nn.DataParallel(model)
    else:
        with FakeGroup(folder):
            parallel = nn.parallel.DistributedDataParallel(model)
            yield torch.compile(parallel, backend="eager") if kind == "both" else parallel


@pytest.mark.parametrize("kind", ["compiled", "parallel", "distributed", "both"])
def test_what_wrappers_add_to_names_never_reaches_a_file(tmp_path: Path, kind: str) -> None:
    plain = build(Transformer, adamw)
    train(plain, 1)
    with wrapped(kind, tmp_path, plain.model) as model:
        path = save(tmp_path, TrainingObjects(model=model, optimizer=plain.optimizer))
    loaded = build(Transformer, adamw)

    report = checkpointer(tmp_path).load_checkpoint(path, loaded.model, loaded.optimizer)

    assert report.missing == report.unexpected == ()
    assert list(load_state(path).state["model"]) == list(plain.model.state_dict())
    assert_same(state_of(loaded)["model"], state_of(plain)["model"])
    assert_same(loaded.optimizer.state_dict(), plain.optimizer.state_dict())


def test_a_wrapper_inside_a_model_is_seen_through_and_a_module_called_module_is_not() -> None:
    inner = nn.Linear(2, 2)
    model = nn.ModuleDict({"module": nn.ModuleDict({"head": torch.compile(inner, backend="eager")})})

    assert list(capture(model)["model"]) == ["module.head.weight", "module.head.bias"]


def test_the_scaler_and_extra_objects_come_back(tmp_path: Path) -> None:
    def objects() -> dict[str, Any]:
        model = nn.Linear(2, 2)
        return {
            "model": model,
            "scaler": torch.amp.GradScaler("cpu"),
            "extra": {
                "ema": torch.optim.swa_utils.AveragedModel(model),
                "second": torch.optim.SGD(model.parameters(), momentum=0.9),
                "noise": torch.Generator().manual_seed(3),
                "dice": np.random.default_rng(3),
                "counters": {"best": 0.25, "seen": 10**30},
                "history": [1.0, float("inf")],
                "mask": torch.arange(4),
            },
        }

    saved = objects()
    saved["scaler"].load_state_dict(saved["scaler"].state_dict() | {"scale": 1024.0, "_growth_tracker": 7})
    saved["extra"]["ema"].update_parameters(saved["model"])
    saved["model"](torch.ones(1, 2)).sum().backward()
    saved["extra"]["second"].step()
    saved["extra"]["dice"].random(5)
    path = save(tmp_path, TrainingObjects(model=saved["model"]), scaler=saved["scaler"], extra=saved["extra"])
    wanted = (torch.rand(3, generator=saved["extra"]["noise"]), saved["extra"]["dice"].random())

    loaded = objects()
    loaded["extra"] |= {"counters": {"other": 1}, "history": [], "mask": torch.zeros(4, dtype=torch.int64)}
    loaded["extra"]["noise"].manual_seed(4)
    checkpointer(tmp_path).load_checkpoint(path, loaded["model"], scaler=loaded["scaler"], extra=loaded["extra"])

    assert_same(loaded["scaler"].state_dict(), saved["scaler"].state_dict())
    assert_same(loaded["extra"]["ema"].state_dict(), saved["extra"]["ema"].state_dict())
    assert_same(loaded["extra"]["second"].state_dict(), saved["extra"]["second"].state_dict())
    assert loaded["extra"]["counters"] == {"best": 0.25, "seen": 10**30}
    assert loaded["extra"]["history"] == [1.0, float("inf")]
    assert_same(loaded["extra"]["mask"], torch.arange(4))
    assert_same(torch.rand(3, generator=loaded["extra"]["noise"]), wanted[0])
    assert loaded["extra"]["dice"].random() == wanted[1]


def test_a_module_with_extra_state_gets_it_back(tmp_path: Path) -> None:
    class Counting(nn.Linear):
        seen = 0

        def get_extra_state(self) -> dict[str, int]:
            return {"seen": self.seen}

        def set_extra_state(self, state: dict[str, int]) -> None:
            self.seen = state["seen"]

    model = nn.Sequential(Counting(2, 2))
    model[0].seen = 5
    path = save(tmp_path, TrainingObjects(model=model))
    loaded = nn.Sequential(Counting(2, 2))

    checkpointer(tmp_path).load_checkpoint(path, loaded)

    assert loaded[0].seen == 5


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda model: setattr(model, "more", nn.Linear(1, 1)), "2 missing (more.weight, more.bias)"),
        (lambda model: delattr(model, "embedding"), "1 unexpected (embedding.weight)"),
        (lambda model: setattr(model, "embedding", nn.Embedding(9, 8)), "has shape (9, 8), the checkpoint (32, 8)"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_changed(change: Callable[[nn.Module], None], told: str) -> None:
    state = copy.deepcopy(state_of(build(Transformer, adamw)))
    model = Transformer()
    change(model)
    before = copy.deepcopy(model.state_dict())

    with pytest.raises(InvalidInputError) as caught:
        restore(state, TrainingObjects(model=model))

    assert told in str(caught.value)
    assert_same(dict(model.state_dict()), dict(before))


def test_a_bad_optimizer_leaves_the_model_untouched() -> None:
    state = copy.deepcopy(state_of(build(Transformer, adamw)))
    model = Transformer()
    before = copy.deepcopy(model.state_dict())
    groups = [{"params": list(model.encoder.parameters())}, {"params": list(model.embedding.parameters())}]

    with pytest.raises(InvalidInputError, match="has 1 parameter groups, this one has 2"):
        restore(state, TrainingObjects(model=model, optimizer=torch.optim.AdamW(groups)))

    assert_same(dict(model.state_dict()), dict(before))


def test_not_strict_takes_what_fits_and_says_what_did_not() -> None:
    saved = build(Transformer, adamw)
    state = copy.deepcopy(state_of(saved))
    model = Transformer()
    model.more = nn.Linear(1, 1)

    report = restore(state, TrainingObjects(model=model), strict=False)

    assert report.missing == ("more.weight", "more.bias")
    assert_same(model.embedding.weight.detach(), saved.model.embedding.weight.detach())


def test_loading_changes_neither_random_numbers_nor_what_was_not_given(tmp_path: Path) -> None:
    objects = build(Transformer, adamw)
    train(objects, 1)
    path = save(tmp_path, objects)
    train(objects, 1)
    other = Transformer()
    before = copy.deepcopy(state_of(objects))

    checkpointer(tmp_path).load_checkpoint(path, other)

    assert_same(state_of(objects), before)


def test_a_resume_names_what_may_make_it_inexact(tmp_path: Path) -> None:
    objects = build(Transformer, adamw)
    path = save(tmp_path, objects)
    objects.model.embedding.weight.requires_grad_(requires_grad=False)
    objects.model.encoder.eval()
    torch.use_deterministic_algorithms(mode=True)
    try:
        notes = resume_objects(path, objects.model, objects.optimizer, objects.scheduler).notes
    finally:
        torch.use_deterministic_algorithms(mode=False)

    assert [note.split(":")[1].split(" was")[0].strip() for note in notes] == [
        "frozen",
        "other_mode",
        "are_deterministic_algorithms_enabled",
    ]


def test_an_expanded_buffer_comes_back(tmp_path: Path) -> None:
    def model() -> nn.Module:
        net = nn.Linear(1, 1)
        net.register_buffer("positions", torch.arange(3.0).view(1, 3).expand(5, 3))
        return net

    saved, loaded = model(), model()
    loaded.positions[0].zero_()
    path = save(tmp_path, TrainingObjects(model=saved))

    checkpointer(tmp_path).load_checkpoint(path, loaded)

    assert torch.equal(loaded.positions, saved.positions)
