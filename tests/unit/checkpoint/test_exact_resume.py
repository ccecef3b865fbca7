"""Train, save, build anew, restore, train on: every kind of training ends as the one that was not interrupted."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from milepost.checkpoint.arguments import TrainingObjects
from milepost.checkpoint.checkpointer import ModelCheckpointer
from milepost.checkpoint.restore import resume_objects
from milepost.checkpoint.state import capture, notes_at_resume
from milepost.core.config import ExperimentConfig
from milepost.core.errors import InvalidInputError

# schedulers are stepped before an optimizer that has skipped its step; torch's own word about it
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")

WIDTH, BEFORE, AFTER = 4, 5, 6


class Plain(nn.Module):
    """Every other model here is this one with something in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.middle: nn.Module = nn.Dropout(0.3)
        self.last = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.middle(self.first(inputs))))


def with_middle(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = Plain()
        model.middle = make()
        return model

    return build


class Tokens(nn.Module):
    """Looks its inputs up."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.table = nn.Embedding(7, WIDTH, **settings)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.table((inputs.abs() * 10).long() % 7)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, WIDTH)
        self.head = nn.Linear(WIDTH, 7, bias=False)
        self.head.weight = self.table.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.table((inputs.abs() * 10).long() % 7))


class Image(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 3, 3, padding=1).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.norm(self.convolution(inputs.view(-1, 2, 2, 1)))


class Adapted(nn.Module):
    """A frozen layer with a trained one of low rank beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(WIDTH, WIDTH).requires_grad_(requires_grad=False)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.down, self.up = nn.Linear(WIDTH, 2, bias=False), nn.Linear(2, WIDTH, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.norm(self.base(inputs) + self.up(self.down(inputs)))


class WideMoments(torch.optim.Optimizer):
    """Keeps float32 moments of bfloat16 parameters, a list, None, and its step as an int."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state.update(step=0, moment=torch.zeros(parameter.shape), seen=[], nothing=None)
                state["step"] += 1
                state["moment"].mul_(0.9).add_(parameter.grad.float(), alpha=1 / 3)
                state["seen"] = [*state["seen"][-1:], state["moment"].clone()]
                parameter.add_((state["moment"] + state["seen"][0]).to(parameter.dtype), alpha=-group["lr"])


def of(kind: Any, **settings: Any) -> Callable[[nn.Module], Any]:
    return lambda model: kind(model.parameters(), **settings)


def named(model: nn.Module) -> torch.optim.Optimizer:
    decayed = [(name, parameter) for name, parameter in model.named_parameters() if parameter.dim() > 1]
    others = [(name, parameter) for name, parameter in model.named_parameters() if parameter.dim() <= 1]
    return torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}])


def muon(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Muon([parameter for parameter in model.parameters() if parameter.dim() == 2], lr=0.1)


def with_parameter_outside(model: nn.Module) -> torch.optim.Optimizer:
    outside = nn.Parameter(torch.ones(3))
    outside.register_hook(lambda gradient: gradient)
    return torch.optim.AdamW([*model.parameters(), outside], lr=0.1)


optim = torch.optim
adamw = of(optim.AdamW, lr=0.1)
momentum = of(optim.SGD, lr=0.1, momentum=0.9)

OPTIMIZERS: dict[str, Callable[[nn.Module], Any]] = {
    "sgd": momentum,
    "nesterov": of(optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": of(optim.Adam, lr=0.1),
    "amsgrad": of(optim.AdamW, lr=0.1, amsgrad=True),
    "fused": of(optim.AdamW, lr=0.1, fused=True),
    "foreach": of(optim.AdamW, lr=0.1, foreach=True),
    "for-loop": of(optim.AdamW, lr=0.1, foreach=False),
    "adagrad": of(optim.Adagrad, lr=0.1, initial_accumulator_value=0.1),
    "adadelta": of(optim.Adadelta),
    "adamax": of(optim.Adamax),
    "nadam": of(optim.NAdam),
    "radam": of(optim.RAdam),
    "rmsprop": of(optim.RMSprop, centered=True, momentum=0.9),
    "rprop": of(optim.Rprop),
    "asgd": of(optim.ASGD, t0=2),
    "adafactor": of(optim.Adafactor, lr=0.1),
    "lbfgs": of(optim.LBFGS, lr=0.1, max_iter=3, history_size=2),
    "lbfgs with line search": of(optim.LBFGS, max_iter=3, line_search_fn="strong_wolfe"),
    "tensor lr": of(optim.AdamW, lr=torch.tensor(0.1), foreach=False),
    "named groups": named,
    "muon": muon,
    "a parameter outside": with_parameter_outside,
}

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "step": lambda o: lr_scheduler.StepLR(o, 2, gamma=0.7),
    "multi step": lambda o: lr_scheduler.MultiStepLR(o, [2, 2, 7], gamma=0.7),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "polynomial": lambda o: lr_scheduler.PolynomialLR(o, 9),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=40),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, total_iters=3), lr_scheduler.CosineAnnealingLR(o, 9)], milestones=[4]
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, total_iters=7), lr_scheduler.ExponentialLR(o, 0.9)], optimizer=o
    ),
}

parametrizations = nn.utils.parametrizations
MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": Plain,
    "batch norm": with_middle(lambda: nn.BatchNorm1d(WIDTH)),
    "spectral norm": with_middle(lambda: parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH))),
    "weight norm": with_middle(lambda: parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))),
    "orthogonal": with_middle(lambda: parametrizations.orthogonal(nn.Linear(WIDTH, WIDTH))),
    "recurrent": with_middle(lambda: nn.Sequential(nn.Unflatten(1, (1, WIDTH)), First(nn.LSTM(WIDTH, WIDTH)))),
    "embedding with a maximal norm": lambda: nn.Sequential(Tokens(max_norm=0.5), nn.Linear(WIDTH, 1)),
    "tied": Tied,
    "channels last": Image,
    "complex": lambda: nn.Sequential(AsComplex(), nn.Linear(WIDTH, 2, dtype=torch.complex64), AsReal()),
    "bfloat16": lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()).bfloat16(),
    "double": lambda: Plain().double(),
    "data parallel": lambda: nn.DataParallel(Plain()),
    "frozen": Adapted,
}


class First(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.inner(inputs)[0][:, 0]


class AsComplex(nn.Module):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.complex(inputs, inputs)


class AsReal(nn.Module):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.view_as_real(inputs)


class Training:
    """Objects of a training, built from the random numbers of ``seed``."""

    def __init__(
        self,
        model: Callable[[], nn.Module] = Plain,
        optimizer: Callable[[nn.Module], Any] = adamw,
        scheduler: Callable[[Any], Any] | None = None,
        scaler: Callable[[], Any] | None = None,
        extra: Callable[[nn.Module], dict[str, Any]] | None = None,
    ) -> None:
        self.parts = (model, optimizer, scheduler, scaler, extra)
        self.model = model()
        self.optimizer = optimizer(self.model)
        self.scheduler = scheduler(self.optimizer) if scheduler is not None else None
        self.scaler = scaler() if scaler is not None else None
        self.extra = extra(self.model) if extra is not None else None

    def train(self, steps: int) -> None:
        for _ in range(steps):
            parameter = next(self.model.parameters())
            inputs = torch.randn(3, WIDTH, dtype=torch.float64 if parameter.dtype == torch.float64 else torch.float32)
            inputs = inputs.to(torch.bfloat16) if parameter.dtype == torch.bfloat16 else inputs
            state = torch.get_rng_state()

            def closure(inputs: torch.Tensor = inputs, state: torch.Tensor = state) -> torch.Tensor:
                torch.set_rng_state(state)  # a line search asks more than once
                self.optimizer.zero_grad()
                loss = self.model(inputs).float().square().mean() + self._outside()
                (loss if self.scaler is None else self.scaler.scale(loss)).backward()
                return loss

            self._step(closure)

    def _outside(self) -> Any:
        known = {id(parameter) for parameter in self.model.parameters()}
        free = [p for group in self.optimizer.param_groups for p in group["params"] if id(p) not in known]
        return sum(parameter.square().sum() for parameter in free)

    def _step(self, closure: Callable[[], torch.Tensor]) -> None:
        if isinstance(self.optimizer, torch.optim.LBFGS):
            loss = self.optimizer.step(closure)
        else:
            loss = closure()
            self._update()
        if isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(loss.detach())
        elif self.scheduler is not None:
            self.scheduler.step()
        for value in (self.extra or {}).values():
            if isinstance(value, AveragedModel):
                value.update_parameters(self.model)

    def _update(self) -> None:
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()

    @property
    def arguments(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "scaler": self.scaler,
            "extra": self.extra,
        }

    def save(self, folder: Path, **settings: Any) -> Path:
        saver = ModelCheckpointer(ExperimentConfig(root=str(folder), **settings))
        path = saver.save_checkpoint(**self.arguments, step=1)
        assert path is not None
        saver.wait()
        return Path(path)


def seed(number: int) -> None:
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)


def check(folder: Path, *parts: Any, **settings: Any) -> None:
    seed(1)
    untouched = Training(*parts)
    untouched.train(BEFORE + AFTER)
    wanted = flat(capture(**untouched.arguments))

    seed(1)
    training = Training(*parts)
    training.train(BEFORE)
    path = training.save(folder, **settings)

    seed(2)
    fresh = Training(*parts)
    if settings.get("include") == "trainable":
        fresh.model.base.load_state_dict(training.model.base.state_dict())
    report = resume_objects(path, **fresh.arguments)
    fresh.train(AFTER)

    assert not [note for note in report.notes if "frozen" not in note]
    assert flat(capture(**fresh.arguments)) == wanted


def flat(value: Any) -> Any:
    """Plain values that are equal only if every bit, dtype and type is."""
    if isinstance(value, torch.Tensor):
        plain = torch.view_as_real(value.detach()) if value.is_complex() else value.detach()
        return (
            str(value.dtype),
            tuple(value.shape),
            value.stride(),
            plain.contiguous().view(torch.uint8).tolist() if plain.dim() else plain.item(),
        )
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.tolist()
    if isinstance(value, dict):
        return {key: flat(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [flat(part) for part in value]
    return repr(value)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_goes_on_exactly(tmp_path: Path, optimizer: str) -> None:
    check(tmp_path, Plain, OPTIMIZERS[optimizer])


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_goes_on_exactly(tmp_path: Path, scheduler: str) -> None:
    check(tmp_path, Plain, momentum, SCHEDULERS[scheduler])


@pytest.mark.parametrize("model", MODELS)
def test_every_kind_of_model_goes_on_exactly(tmp_path: Path, model: str) -> None:
    check(tmp_path, MODELS[model], adamw)


def test_sparse_gradients_go_on_exactly(tmp_path: Path) -> None:
    check(tmp_path, lambda: Tokens(sparse=True), of(optim.SparseAdam, lr=0.1))


def test_moments_keep_a_dtype_that_is_not_that_of_the_parameter(tmp_path: Path) -> None:
    check(tmp_path, MODELS["bfloat16"], of(WideMoments))


@pytest.mark.parametrize("enabled", [True, False])
def test_a_scaler_goes_on_exactly(tmp_path: Path, enabled: bool) -> None:
    def scaler() -> Any:
        return torch.amp.GradScaler(
            "cpu", enabled=enabled, init_scale=2.0**126, growth_interval=3
        )  # overflows at first

    check(tmp_path, Plain, adamw, SCHEDULERS["step"], scaler)


def test_an_average_of_the_weights_goes_on_exactly(tmp_path: Path) -> None:
    def extra(model: nn.Module) -> dict[str, Any]:
        return {"ema": AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)}

    check(tmp_path, MODELS["batch norm"], adamw, None, None, extra)


@pytest.mark.parametrize("settings", [{"compression": False}, {"compression": True}])
def test_no_way_of_storing_changes_a_bit(tmp_path: Path, settings: dict[str, Any]) -> None:
    check(tmp_path, MODELS["batch norm"], adamw, SCHEDULERS["one cycle"], **settings)


def test_without_the_frozen_parameters_a_training_goes_on_exactly(tmp_path: Path) -> None:
    check(tmp_path, Adapted, of_trainable, include="trainable")


def of_trainable(model: nn.Module) -> Any:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)


def test_only_frozen_parameters_are_left_out(tmp_path: Path) -> None:
    from milepost.checkpoint.loading import load

    training = Training(Adapted, of_trainable)
    training.train(1)
    state = load(training.save(tmp_path, include="trainable"))

    assert set(state["model"]) == {
        "down.weight", "up.weight", "norm.weight", "norm.bias",
        "norm.running_mean", "norm.running_var", "norm.num_batches_tracked",
    }  # fmt: skip
    assert state["facts"]["frozen"] == ["base.weight", "base.bias"]


def test_what_is_missing_beside_the_frozen_ones_is_refused(tmp_path: Path) -> None:
    training = Training(Adapted, of_trainable)
    training.train(1)
    path = training.save(tmp_path, include="trainable")
    other = Adapted()
    other.more = nn.Linear(1, 1)

    with pytest.raises(InvalidInputError, match=r"more\.weight"):
        resume_objects(path, other)


def test_an_accumulation_that_was_interrupted_goes_on_exactly(tmp_path: Path) -> None:
    def micro_batches(training: Training, first: int, last: int) -> None:
        for number in range(first, last):
            training.model(torch.randn(3, WIDTH)).square().mean().backward()
            if number % 4 == 3:
                training.optimizer.step()
                training.optimizer.zero_grad()

    seed(1)
    untouched = Training()
    micro_batches(untouched, 0, 12)
    seed(1)
    training = Training()
    micro_batches(training, 0, 6)
    path = training.save(tmp_path)
    seed(2)
    fresh = Training()
    resume_objects(path, **fresh.arguments)
    micro_batches(fresh, 6, 12)

    assert flat(capture(**fresh.arguments)) == flat(capture(**untouched.arguments))


def test_a_loop_that_saves_between_step_and_zero_grad_saves_gradients_once_at_most(tmp_path: Path) -> None:
    saver = ModelCheckpointer(ExperimentConfig(root=str(tmp_path)))
    training = Training()
    for step in range(3):
        training.train(1)
        saver.save_checkpoint(**training.arguments, step=step)
    saver.wait()

    assert ["gradients" in info.contents for info in saver.list_checkpoints()] == [True, False, False]


BITS = ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"]


def generators() -> Iterator[tuple[str, Any, Callable[[Any], Any]]]:
    for kind in BITS:
        bits = getattr(np.random, kind)
        yield kind, lambda number, bits=bits: np.random.Generator(bits(number)), lambda g: g.normal(size=3).tolist()
    yield "RandomState", np.random.RandomState, lambda g: g.normal(size=3).tolist()
    yield "torch", lambda number: torch.Generator().manual_seed(number), lambda g: torch.randn(3, generator=g).tolist()
    yield "python", random.Random, lambda g: [g.gauss(0, 1), g.random()]


@pytest.mark.parametrize(("make", "draw"), [kind[1:] for kind in generators()], ids=[kind[0] for kind in generators()])
def test_generators_of_the_user_go_on_exactly(tmp_path: Path, make: Any, draw: Any) -> None:
    model = nn.Linear(1, 1)
    mine, fresh = make(3), make(4)
    draw(mine)
    saver = ModelCheckpointer(ExperimentConfig(root=str(tmp_path)))
    path = saver.save_checkpoint(model, step=0, extra={"mine": mine})
    wanted = [draw(mine), draw(mine)]

    resume_objects(path, model, extra={"mine": fresh})

    assert [draw(fresh), draw(fresh)] == wanted


def test_numbers_that_are_none_come_back_as_they_were(tmp_path: Path) -> None:
    odd = {"nan": math.nan, "inf": -math.inf, "large": 2**127 + 1, "tensor": torch.tensor([math.nan, math.inf, -0.0])}
    model, fresh = nn.Linear(1, 1), {"nan": 0}
    saver = ModelCheckpointer(ExperimentConfig(root=str(tmp_path)))
    path = saver.save_checkpoint(model, step=0, extra={"odd": odd})

    resume_objects(path, model, extra={"odd": fresh})

    assert flat(fresh) == flat(odd)


def test_a_model_wrapped_otherwise_goes_on_exactly(tmp_path: Path) -> None:
    compiled = lambda: torch.compile(Plain(), backend="eager")  # noqa: E731 - its place in the checkpoint is that of Plain
    seed(1)
    training = Training(compiled)
    training.train(2)
    path = training.save(tmp_path)
    seed(2)
    fresh = Training()
    resume_objects(path, **fresh.arguments)

    assert flat(capture(**fresh.arguments)["model"]) == flat(capture(**training.arguments)["model"])
    assert flat(capture(**fresh.arguments)["optimizer"]) == flat(capture(**training.arguments)["optimizer"])


def test_a_model_of_many_processes_goes_on_exactly(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        check(tmp_path, lambda: nn.parallel.DistributedDataParallel(Plain(), gradient_as_bucket_view=True), adamw)
    finally:
        torch.distributed.destroy_process_group()


def test_a_sharded_optimizer_and_a_model_without_shapes_are_refused(tmp_path: Path) -> None:
    class ZeroRedundancyOptimizer(torch.optim.SGD):
        pass

    saver = ModelCheckpointer(ExperimentConfig(root=str(tmp_path)))
    model = nn.Linear(1, 1)
    with pytest.raises(InvalidInputError, match="sharded ZeroRedundancyOptimizer"):
        saver.save_checkpoint(model, ZeroRedundancyOptimizer(model.parameters()), step=0)
    lazy = nn.LazyLinear(2)
    with pytest.raises(InvalidInputError, match="no shape yet"):
        saver.save_checkpoint(lazy, step=0)


def test_a_save_between_unscaling_and_the_update_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saver = ModelCheckpointer(ExperimentConfig(root=str(tmp_path)))
    training = Training(Plain, adamw, None, lambda: torch.amp.GradScaler("cpu"))
    training.train(1)
    saver.save_checkpoint(**training.arguments, step=0)
    assert "scaler" not in capsys.readouterr().err
    training.scaler.scale(training.model(torch.ones(1, WIDTH)).sum()).backward()
    training.scaler.unscale_(training.optimizer)

    for step in (1, 2):
        saver.save_checkpoint(**training.arguments, step=step)

    assert capsys.readouterr().err.count("save after scaler.update()") == 1


def test_a_lambda_of_a_scheduler_is_reported() -> None:
    inner = Training(Plain, adamw, SCHEDULERS["lambda"])
    assert list(notes_at_resume(TrainingObjects(**inner.arguments))) == [
        "the lambda of LambdaLR is not in the checkpoint: the one given here is used"
    ]
    chained = Training(
        Plain,
        adamw,
        lambda o: lr_scheduler.ChainedScheduler(
            [lr_scheduler.ConstantLR(o), lr_scheduler.MultiplicativeLR(o, lambda step: 0.9)], optimizer=o
        ),
    )
    assert "MultiplicativeLR" in next(notes_at_resume(TrainingObjects(**chained.arguments)))
    assert list(notes_at_resume(TrainingObjects(**Training().arguments))) == []


def test_flags_of_the_implementation_stay_and_are_named(tmp_path: Path) -> None:
    training = Training(Plain, OPTIMIZERS["fused"])
    training.train(2)
    path = training.save(tmp_path)
    fresh = Training(Plain, OPTIMIZERS["for-loop"])

    report = resume_objects(path, **fresh.arguments)

    assert any("fused=None stays, the checkpoint had True" in note for note in report.notes)
    assert fresh.optimizer.param_groups[0]["fused"] is None
    assert flat(copy.deepcopy(fresh.optimizer.state_dict()["state"])) == flat(training.optimizer.state_dict()["state"])
