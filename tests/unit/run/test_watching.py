"""Are the norms those of the gradients that the optimizer takes, at the step of the loss, and is nothing changed?"""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch
from torch import nn

import milepost
from milepost.core.errors import InvalidCallError, InvalidInputError
from milepost.rules import ExplodingGradients


@pytest.fixture
def quiet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return milepost.ExperimentConfig(
        tensorboard_dir=None, capture_code=False, capture_console=False, system_metrics_every=None
    )


def series(folder, name):
    (run,) = milepost.open(folder).runs()
    found = run.series(name)
    return dict(zip(found.step.tolist(), found.value.tolist(), strict=True))


def model_of(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))


def norm(tensors):
    return math.sqrt(sum(float((tensor.double() ** 2).sum()) for tensor in tensors))


def train(model, optimizer, run=None, *, steps=25, clip=None, before=lambda: None):
    """Steps from 1; returns what the norms were."""
    expected, losses = {}, []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss = model(torch.randn(16, 4)).square().mean()
        loss.backward()
        before()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        expected[step] = (norm([p.grad for p in trained if p.grad is not None]), norm([p.detach() for p in trained]))
        optimizer.step()
        losses.append(loss.item())
        if run is not None:
            run.log({"loss": losses[-1]}, step)
    return expected, losses


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: torch.compile(m, backend="eager")], ids=["bare", "compiled"])
def test_every_tenth_step_the_norms_and_the_rate_stand_beside_the_loss(tmp_path, quiet, wrap):
    model = model_of()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.25)
    with milepost.start("watched", config=quiet) as run:
        run.watch(wrap(model), optimizer)
        expected, _ = train(model, optimizer, run)
    assert series(tmp_path, "grad_norm") == pytest.approx({n: expected[n][0] for n in (1, 11, 21)})
    assert series(tmp_path, "param_norm") == pytest.approx({n: expected[n][1] for n in (1, 11, 21)})
    assert series(tmp_path, "lr") == {1: 0.25, 11: 0.25, 21: 0.25}
    assert len(series(tmp_path, "loss")) == 25


def test_clipped_gradients_are_measured_as_the_optimizer_takes_them(tmp_path, quiet):
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with milepost.start("watched", config=quiet) as run:
        run.watch(model, optimizer, every=1)
        train(model, optimizer, run, steps=3, clip=1e-3)
    assert all(value <= 1.01e-3 for value in series(tmp_path, "grad_norm").values())


def test_layers_groups_frozen_sparse_absent_and_half_gradients_are_told_as_they_are(tmp_path, quiet):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(9, 4, sparse=True)
            self.body = nn.Linear(4, 4)
            self.frozen = nn.Linear(4, 4)
            self.unused = nn.Linear(4, 4)
            self.narrow = nn.Linear(4, 4, dtype=torch.bfloat16)

        def forward(self, words):
            hidden = self.frozen(self.body(self.words(words)))
            return self.narrow(hidden.bfloat16()).float().square().mean()

    torch.manual_seed(1)
    model = Model()
    model.frozen.requires_grad_(requires_grad=False)
    groups = [{"params": model.words.parameters(), "lr": 0.1}]
    groups += [{"params": [p for m in (model.body, model.unused, model.narrow) for p in m.parameters()], "lr": 0.2}]
    optimizer = torch.optim.SGD(groups)
    with milepost.start("watched", config=quiet) as run:
        run.watch(model, optimizer, layers=True)
        model(torch.tensor([3, 3, 5])).backward()
        uncoalesced = model.words.weight.grad
        gradients = {
            "words": [uncoalesced.to_dense()],
            "body": [p.grad for p in model.body.parameters()],
            "narrow": [p.grad for p in model.narrow.parameters()],
        }
        optimizer.step()
        assert model.words.weight.grad is uncoalesced
        assert not uncoalesced.is_coalesced()
        run.log({"loss": 1.0}, 7)
    for name, tensors in gradients.items():
        assert series(tmp_path, f"grad_norm/{name}") == {7: pytest.approx(norm(tensors), rel=1e-5)}
    everything = [tensor for tensors in gradients.values() for tensor in tensors]
    assert series(tmp_path, "grad_norm") == {7: pytest.approx(norm(everything), rel=1e-5)}
    (run,) = milepost.open(tmp_path).runs()
    assert "param_norm/unused" in run.metrics()
    assert not {"grad_norm/unused", "grad_norm/frozen", "param_norm/frozen"} & set(run.metrics())
    assert (series(tmp_path, "lr/0"), series(tmp_path, "lr/1")) == ({7: 0.1}, {7: 0.2})


@pytest.mark.parametrize("fused", [False, True])
def test_under_a_gradient_scaler_the_norm_is_that_of_the_gradients_without_the_scale(tmp_path, quiet, fused):
    model = model_of().eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    loss = model(torch.ones(2, 4)).square().mean()
    plain = norm(torch.autograd.grad(loss, list(model.parameters()), retain_graph=True))
    with milepost.start("watched", config=quiet) as run:
        run.watch(model, optimizer)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        run.log({"loss": loss}, 1)
    assert series(tmp_path, "grad_norm") == {1: pytest.approx(plain, rel=1e-5)}


def test_a_watched_training_computes_the_same_bits(quiet):
    def weights(watched):
        model = model_of(3)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        with milepost.start("watched", config=quiet) as run:
            if watched:
                run.watch(model, optimizer, every=1, layers=True)
            _, losses = train(model, optimizer, run)
        return [*model.state_dict().values(), torch.tensor(losses), torch.get_rng_state()]

    for one, other in zip(weights(watched=True), weights(watched=False), strict=True):
        assert torch.equal(one, other)


def test_where_steps_are_logged_rarely_the_newest_measurement_stands_at_each(tmp_path, quiet):
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with milepost.start("watched", config=quiet) as run:
        run.watch(model, optimizer, every=2)
        expected, _ = train(model, optimizer, steps=7)
        run.log({"loss": 1.0}, 100)
        train(model, optimizer, steps=1)
        run.log({"loss": 1.0})
    assert series(tmp_path, "grad_norm") == {100: pytest.approx(expected[7][0])}
    assert series(tmp_path, "loss") == {100: 1.0, 101: 1.0}


def test_nothing_is_kept_alive_and_watching_ends_with_the_run_and_is_replaced_by_another_call(tmp_path, quiet):
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = milepost.start("watched", config=quiet)
    run.watch(model, optimizer)
    run.watch(model, optimizer, every=5)
    train(model, optimizer, run, steps=10)
    run.end()
    assert not optimizer._optimizer_step_pre_hooks
    train(model, optimizer, steps=10)
    assert sorted(series(tmp_path, "grad_norm")) == [1, 6]

    with milepost.start("other", config=quiet) as run:
        run.watch(model, optimizer, layers=True)
        gone = weakref.ref(model)
        del model, optimizer
        gc.collect()
        assert gone() is None


def test_what_goes_wrong_while_measuring_is_said_once_and_the_training_goes_on(tmp_path, quiet, capsys):
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with milepost.start("watched", config=quiet) as run:
        run.watch(model, optimizer, every=1)
        run._watcher._measure = lambda *_: torch.ones(2) @ torch.ones(3)
        train(model, optimizer, run, steps=5)
    assert capsys.readouterr().err.count("the model is not watched any more (RuntimeError") == 1
    assert len(series(tmp_path, "loss")) == 5


def test_what_cannot_be_meant_raises_at_once(quiet):
    model, other = model_of(), model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InvalidCallError, match="no run is live"):
        milepost.watch(model, optimizer)
    with milepost.start("watched", config=quiet) as run:
        with pytest.raises(InvalidCallError, match="watch has no optimizer"):
            run.watch(model)
        with pytest.raises(InvalidCallError, match="watch got a SGD as model"):
            run.watch(optimizer, model)
        with pytest.raises(InvalidCallError, match="watch got a Sequential as optimizer"):
            run.watch(model, model)
        with pytest.raises(InvalidInputError, match="trains no parameter of the model"):
            run.watch(other, optimizer)
        with pytest.raises(InvalidInputError, match="every is 0"):
            run.watch(model, optimizer, every=0)
        with milepost.start("second", config=quiet), pytest.raises(InvalidCallError, match="2 runs are live"):
            milepost.watch(model, optimizer)
    with pytest.raises(InvalidCallError, match="has ended"):
        run.watch(model, optimizer)


def test_the_one_live_run_watches_what_resume_was_given_and_a_disabled_one_nothing(tmp_path, quiet, monkeypatch):
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    system = milepost.ExperimentTrackingSystem(quiet)
    system.start_experiment("watched")
    system.resume(model, optimizer)
    milepost.watch(model)
    system.watch(model, every=4)
    train(model, optimizer, system.run, steps=5)
    system.end_experiment()
    assert sorted(series(tmp_path, "grad_norm")) == [1, 5]
    monkeypatch.setenv("MILEPOST_MODE", "disabled")
    milepost.start("none", config=quiet).watch(model, optimizer)
    milepost.watch(model, optimizer)
    assert not optimizer._optimizer_step_pre_hooks


def test_a_rule_on_exploding_gradients_judges_what_is_watched(tmp_path, quiet):
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    rules = [ExplodingGradients(window=20)]
    with milepost.start("watched", rules=rules, tensorboard_dir=None, capture_code=False) as run:
        run.watch(model, optimizer, every=1)
        train(model, optimizer, run, steps=20)
        with torch.no_grad():
            model[3].weight.mul_(1000)
        train(model, optimizer, run, steps=1)
    (alert,) = milepost.open(tmp_path).runs()[0].alerts
    assert alert.title.startswith("grad_norm rose to")
