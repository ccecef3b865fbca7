"""A training over a plain DataLoader that stops inside an epoch ends with the weights of one that did not stop."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import random
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    WeightedRandomSampler,
)

from milepost.checkpoint.position import NOT_SAVED, capture_position, position_note, restore_position, track
from milepost.checkpoint.rng import capture_rng, restore_rng
from milepost.checkpoint.state import capture_rank
from milepost.checkpoint.tree import decode_tree, encode_tree

SAMPLES, BATCH = 13, 3
PER_EPOCH = 5


class Noisy(Dataset[torch.Tensor]):
    """Draws from every global generator for every sample, and from one of its own."""

    def __init__(self) -> None:
        self.own = np.random.default_rng(3)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> torch.Tensor:
        noise = [random.random(), random.gauss(0, 1), float(np.random.normal()), float(torch.rand(()))]
        return torch.tensor([index / SAMPLES, *noise, self.own.random()])


class Stream(IterableDataset[torch.Tensor]):
    def __iter__(self) -> Iterator[torch.Tensor]:
        for index in range(SAMPLES):
            yield torch.tensor([float(index), *torch.rand(4).tolist(), random.random()])


class EveryOther(Sampler[int]):
    """A sampler of the user that draws from a global generator."""

    def __len__(self) -> int:
        return SAMPLES

    def __iter__(self) -> Iterator[int]:
        order = list(range(0, SAMPLES, 2)) + list(range(1, SAMPLES, 2))
        random.shuffle(order)
        return iter(order)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(9)


def shuffled(**settings: Any) -> DataLoader[Any]:
    return DataLoader(Noisy(), batch_size=BATCH, shuffle=True, **settings)


def shuffled_by_own_generator(**settings: Any) -> DataLoader[Any]:
    return shuffled(generator=seeded(), **settings)


def in_order(**settings: Any) -> DataLoader[Any]:
    return DataLoader(Noisy(), batch_size=BATCH, **settings)


def custom_sampler(**settings: Any) -> DataLoader[Any]:
    return DataLoader(Noisy(), batch_size=BATCH, sampler=EveryOther(), drop_last=True, **settings)


def custom_batch_sampler(**settings: Any) -> DataLoader[Any]:
    batches = BatchSampler(RandomSampler(Noisy(), generator=seeded()), BATCH, drop_last=False)
    return DataLoader(Noisy(), batch_sampler=batches, **settings)


def weighted(**settings: Any) -> DataLoader[Any]:
    sampler = WeightedRandomSampler([1.0 + index for index in range(SAMPLES)], SAMPLES)
    return DataLoader(Noisy(), batch_size=BATCH, sampler=sampler, **settings)


def with_replacement(**settings: Any) -> DataLoader[Any]:
    sampler = RandomSampler(Noisy(), replacement=True, num_samples=40, generator=seeded())
    return DataLoader(Noisy(), batch_size=8, sampler=sampler, **settings)


def streamed(**settings: Any) -> DataLoader[Any]:
    return DataLoader(Stream(), batch_size=BATCH, **settings)


def without_batching(**settings: Any) -> DataLoader[Any]:
    return DataLoader(Noisy(), batch_size=None, shuffle=True, **settings)


def distributed(**settings: Any) -> DataLoader[Any]:
    sampler = DistributedSampler(Noisy(), num_replicas=2, rank=1, seed=4)
    return DataLoader(Noisy(), batch_size=2, sampler=sampler, **settings)


MAKERS = [
    shuffled,
    shuffled_by_own_generator,
    in_order,
    custom_sampler,
    custom_batch_sampler,
    weighted,
    with_replacement,
    streamed,
    without_batching,
    distributed,
]


class Training:
    """A model with dropout and its optimizer: what the loop draws and what the batches hold reach the weights."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.loader = loader
        self.steps = 0

    def run(self, epochs: int, first: int = 0) -> Iterator[int]:
        """Yields after each step."""
        for epoch in range(first, epochs):
            if isinstance(self.loader.sampler, DistributedSampler):
                self.loader.sampler.set_epoch(epoch)
            for batch in self.loader:
                self.optimizer.zero_grad()
                (self.model(batch).square().mean() * random.random() * float(np.random.normal())).backward()
                self.optimizer.step()
                self.steps += 1
                yield epoch

    def save(self) -> dict[str, Any]:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        return copy.deepcopy({"steps": self.steps, **state, **capture_rank(self.loader)})

    def result(self) -> str:
        weights = [parameter.tolist() for parameter in self.model.parameters()]
        return repr((self.steps, weights, capture_rng(), self.loader.generator and self.loader.generator.get_state()))


def seed(number: int) -> None:
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)


def begin(make: Callable[[], DataLoader[Any]], number: int = 1) -> Training:
    seed(number)
    training = Training(make())
    track(training.loader)
    return training


def resumed(saved: dict[str, Any], make: Callable[[], DataLoader[Any]], *notes: str) -> Training:
    """Another process: nothing is as it was."""
    seed(77)
    training = Training(make())
    training.model.load_state_dict(saved["model"])
    training.optimizer.load_state_dict(saved["optimizer"])
    assert restore_position(training.loader, saved["loader"]) == notes
    restore_rng(saved["rng"])
    training.steps = saved["steps"]
    return training


def check(make: Callable[[], DataLoader[Any]], stop: int, epochs: int = 3, *notes: str) -> None:
    seed(1)
    untouched = Training(make())
    for _ in untouched.run(epochs):
        pass
    wanted = untouched.result()

    training = begin(make)
    steps = training.run(epochs)
    epoch = 0
    for _ in range(stop):
        epoch = next(steps)
    saved = training.save()
    steps.close()

    again = resumed(saved, make, *notes)
    for _ in again.run(epochs, epoch):
        pass
    assert again.result() == wanted


@pytest.mark.parametrize("stop", [0, 2, PER_EPOCH, PER_EPOCH + 1])
@pytest.mark.parametrize("make", MAKERS)
def test_a_training_goes_on_as_if_it_had_not_stopped(make: Any, stop: int) -> None:
    check(make, stop, epochs=2)


@pytest.mark.parametrize("make", [shuffled, shuffled_by_own_generator, streamed, custom_sampler])
def test_random_numbers_inside_workers_are_those_of_the_interrupted_epoch(make: Any) -> None:
    check(lambda: make(num_workers=2), PER_EPOCH + 1, 2)


@pytest.mark.parametrize("stop", [2, PER_EPOCH])
def test_workers_that_stay_over_epochs_go_on_inside_their_first_epoch(stop: int) -> None:
    check(lambda: in_order(num_workers=1, persistent_workers=True), stop, 1)


def test_the_order_of_a_loader_whose_workers_stay_is_that_of_the_interrupted_training() -> None:
    def make() -> DataLoader[Any]:
        return DataLoader(torch.arange(SAMPLES), batch_size=BATCH, shuffle=True, num_workers=1, persistent_workers=True)

    def batches(loader: DataLoader[Any], epochs: int) -> Iterator[tuple[list[int], float]]:
        for _ in range(epochs):
            for batch in loader:
                yield batch.tolist(), float(torch.rand(()))

    for stop in (PER_EPOCH + 2, 2 * PER_EPOCH):
        seed(1)
        loader = make()
        track(loader)
        steps = batches(loader, 3)
        for _ in range(stop):
            next(steps)
        saved = {"loader": capture_position(loader), "rng": capture_rng()}
        wanted = list(steps)

        seed(2)
        fresh = make()
        notes = restore_position(fresh, saved["loader"])
        restore_rng(saved["rng"])

        assert "were started anew" in notes[0]
        assert list(batches(fresh, 2)) == wanted


def test_a_training_may_be_resumed_twice_inside_one_epoch() -> None:
    training = begin(shuffled)
    for _ in training.run(2):
        pass
    wanted = training.result()

    first = begin(shuffled)
    steps = first.run(2)
    next(steps)
    second = resumed(first.save(), shuffled)
    steps = second.run(2)
    next(steps)
    next(steps)
    unused = resumed(second.save(), shuffled)  # killed again before its first step
    third = resumed(unused.save(), shuffled)
    for _ in third.run(2):
        pass

    assert third.result() == wanted


def test_after_its_last_epoch_a_loader_begins_a_new_one() -> None:
    training = begin(shuffled)
    for _ in training.run(1):
        pass
    saved = training.save()
    wanted = [batch.tolist() for batch in training.loader]

    assert [batch.tolist() for batch in resumed(saved, shuffled).loader] == wanted


def test_validating_on_the_same_loader_inside_the_loop_does_not_hide_the_training() -> None:
    def run(training: Training) -> Iterator[None]:
        for _ in training.run(1):
            for _ in training.loader:
                pass
            for _ in training.loader:
                break
            yield

    training = begin(shuffled)
    steps = run(training)
    next(steps)
    next(steps)
    for _ in training.loader:
        pass
    saved = training.save()
    for _ in steps:
        pass

    again = resumed(saved, shuffled)
    for _ in run(again):
        pass

    assert again.result() == training.result()


def test_two_loaders_in_one_loop_do_not_disturb_each_other() -> None:
    def run(loader: DataLoader[Any], other: DataLoader[Any], epochs: int) -> Iterator[tuple[Any, Any]]:
        for _ in range(epochs):
            for one, two in zip(loader, other, strict=True):
                yield one.tolist(), two.tolist()

    seed(1)
    loader, other = shuffled(), shuffled()
    track([loader, other])
    steps = run(loader, other, 2)
    for _ in range(PER_EPOCH + 2):
        next(steps)
    saved = capture_position([loader, other]), capture_rng()
    wanted = list(steps)

    seed(2)
    fresh = [shuffled(), shuffled()]
    assert restore_position(fresh, saved[0]) == ()
    restore_rng(saved[1])

    assert list(run(*fresh, 1)) == wanted


def test_a_loop_that_was_left_is_still_inside_its_epoch() -> None:
    training = begin(in_order)
    for _ in training.loader:
        break
    saved = training.save()

    assert [len(batch) for batch in resumed(saved, in_order).loader] == [3, 3, 3, 1]


def test_skipping_is_said_before_it_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    training = begin(in_order)
    steps = training.run(1)
    next(steps)
    next(steps)

    resumed(training.save(), in_order)

    assert "skipping 2 batches of the epoch: use torchdata's StatefulDataLoader" in capsys.readouterr().err


def test_a_loader_of_another_shape_is_named() -> None:
    training = begin(in_order)
    steps = training.run(1)
    for _ in range(4):
        next(steps)

    resumed(
        training.save(),
        lambda: DataLoader(Noisy(), batch_size=5),
        "data position may differ: batch_size of the loader was 3, is 5",
        "data position not restored: the epoch has 3 batches, 4 were done",
    )


def test_a_loader_that_was_not_seen_from_the_start_of_its_epoch_is_exact_from_the_next_one_on() -> None:
    loader = shuffled()
    batches = iter(loader)
    next(batches)
    track(loader, begun=True)

    assert position_note(loader) == NOT_SAVED
    assert restore_position(shuffled(), capture_position(loader)) == (NOT_SAVED,)
    for _ in loader:
        assert position_note(loader) is None


def test_tracking_draws_no_random_number_and_changes_no_batch() -> None:
    seed(1)
    wanted = [batch.tolist() for batch in shuffled()], capture_rng()
    seed(1)
    loader = shuffled()
    track(loader)
    track(loader)

    assert repr(([batch.tolist() for batch in loader], capture_rng())) == repr(wanted)


def test_a_tracked_loader_looks_like_the_one_it_was() -> None:
    class Mine(DataLoader[Any]):
        def __iter__(self) -> Iterator[Any]:
            for batch in super().__iter__():
                yield batch * 2

    loader = Mine(torch.arange(4), batch_size=2)
    before = repr(loader)
    track(loader)
    batches = iter(loader)

    assert repr(loader) == before
    assert isinstance(loader, Mine)
    assert len(loader) == 2
    assert next(batches).tolist() == [0, 2]
    assert iter(batches) is batches
    assert len(iter(in_order())) == PER_EPOCH


def test_copies_and_pickles_of_a_tracked_loader_are_of_the_class_it_had() -> None:
    loader = shuffled_by_own_generator()
    track(loader)
    next(iter(loader))

    for other in (copy.deepcopy(loader), copy.copy(loader), pickle.loads(pickle.dumps(loader))):
        assert type(other) is DataLoader
        assert len(list(other)) == PER_EPOCH


def test_neither_a_batch_nor_an_iterator_is_kept_alive() -> None:
    loader = in_order()
    track(loader)
    batches = iter(loader)
    gc.disable()
    try:
        batch = weakref.ref(next(batches))
        inner = weakref.ref(batches)
        del batches
        assert batch() is None
        assert inner() is None
    finally:
        gc.enable()


def test_a_loader_of_another_kind_is_left_alone() -> None:
    class Final(DataLoader[Any]):
        def __init_subclass__(cls) -> None:
            raise TypeError

    loaders: list[Any] = [[1, 2], Final(torch.arange(3))]
    for loader in loaders:
        kind = type(loader)
        track(loader)
        assert type(loader) is kind
        assert position_note(loader) == NOT_SAVED
        assert restore_position(loader, capture_position(loader)) == (NOT_SAVED,)


def test_a_position_fits_a_text_without_tensors() -> None:
    training = begin(shuffled_by_own_generator)
    steps = training.run(2)
    next(steps)
    next(steps)
    saved = training.save()
    for _ in steps:
        pass

    text = json.dumps(encode_tree({part: saved[part] for part in ("rng", "loader")}, leaf=lambda _: None))
    rank = decode_tree(json.loads(text), leaf=lambda _: None)
    again = resumed(saved | rank, shuffled_by_own_generator)
    for _ in again.run(2):
        pass

    assert again.result() == training.result()
