"""A loop stopped inside an epoch goes on with the next batch, and with the random numbers it would have drawn."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, RandomSampler

from milepost.checkpoint.checkpointer import ModelCheckpointer
from milepost.checkpoint.position import NOT_SAVED, capture_position, position_note, restore_position, track
from milepost.checkpoint.restore import resume_objects
from milepost.checkpoint.rng import capture_rng
from milepost.core.config import ExperimentConfig

# torchdata's own use of torch
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
stateful = pytest.importorskip("torchdata.stateful_dataloader")


class Numbers(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(float(index))


def own_generator(**settings: Any) -> Any:
    return stateful.StatefulDataLoader(
        Numbers(), batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(9), **settings
    )


def global_generator(**settings: Any) -> Any:
    return stateful.StatefulDataLoader(Numbers(), batch_size=3, shuffle=True, **settings)


def with_replacement(**settings: Any) -> Any:
    sampler = stateful.sampler.RandomSampler(Numbers(), replacement=True, num_samples=50)
    return stateful.StatefulDataLoader(Numbers(), batch_size=3, sampler=sampler, **settings)


def in_order(**settings: Any) -> Any:
    return stateful.StatefulDataLoader(Numbers(), batch_size=3, **settings)


def loop(model: torch.nn.Module, loader: Any, epochs: int) -> Iterator[list[float]]:
    """Batches, and a number of each global generator after each of them."""
    for _ in range(epochs):
        for batch in loader:
            noise = [float(torch.rand(())), random.random(), random.gauss(0, 1), float(np.random.normal())]
            yield [*batch.tolist(), *noise]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 4, 7, 9])
@pytest.mark.parametrize("make", [own_generator, global_generator])
def test_a_loop_stopped_inside_an_epoch_goes_on_as_if_it_had_not(
    tmp_path: Path, make: Any, stop: int, workers: int
) -> None:
    check_resume(tmp_path, lambda: make(num_workers=workers), stop)


@pytest.mark.parametrize("make", [with_replacement, in_order])
def test_other_samplers_go_on_too(tmp_path: Path, make: Any) -> None:
    check_resume(tmp_path, make, 5)


def test_persistent_workers_go_on_too(tmp_path: Path) -> None:
    check_resume(tmp_path, lambda: own_generator(num_workers=1, persistent_workers=True), 9)


def check_resume(folder: Path, make: Any, stop: int) -> None:
    model = torch.nn.Linear(1, 1)
    saver = ModelCheckpointer(ExperimentConfig(root=str(folder)))
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    loader = make()
    steps = loop(model, loader, 3)
    for _ in range(stop):
        next(steps)
    path = saver.save_checkpoint(model, step=stop, loader=loader)
    wanted = list(steps)
    saver.wait()

    torch.manual_seed(6)
    random.seed(6)
    np.random.seed(6)
    fresh = make()
    report = resume_objects(path, model, loader=fresh)
    batches_per_epoch = len(fresh)
    epochs_begun = max(1, -(-stop // batches_per_epoch))

    assert report.notes == ()
    assert list(loop(model, fresh, 3 - epochs_begun + 1)) == wanted


def test_saving_draws_no_random_number_and_makes_no_iterator() -> None:
    loader = global_generator()
    before = capture_rng()

    saved = capture_position(loader)

    assert loader._iterator is None
    assert "state" not in saved
    assert repr(capture_rng()) == repr(before)


def test_a_loader_saved_before_its_first_batch_starts_at_its_first_batch(tmp_path: Path) -> None:
    check_resume(tmp_path, own_generator, 0)


def test_a_plain_loader_first_saved_inside_an_epoch_says_that_its_position_is_not_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loader = DataLoader(Numbers(), batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(1))
    batches = iter(loader)
    next(batches)
    track(loader, begun=True)
    saved = capture_position(loader)
    wanted = [batch.tolist() for batch in loader]
    loader.generator.manual_seed(2)

    assert position_note(loader) is None  # an epoch was seen from its start
    assert restore_position(loader, saved) == (NOT_SAVED,)
    assert [batch.tolist() for batch in loader] == wanted


def test_generators_hanging_at_samplers_are_kept() -> None:
    sampler = RandomSampler(Numbers(), generator=torch.Generator().manual_seed(4))
    loader = DataLoader(Numbers(), batch_size=3, sampler=sampler)
    saved = capture_position(loader)
    wanted = list(sampler)

    restore_position(loader, saved)

    assert list(saved["generators"]) == ["sampler.generator"]
    assert list(sampler) == wanted


def test_the_epoch_of_a_distributed_sampler_is_kept() -> None:
    loader = DataLoader(Numbers(), sampler=DistributedSampler(Numbers(), num_replicas=2, rank=1))
    loader.sampler.set_epoch(3)
    saved = capture_position(loader)
    loader.sampler.set_epoch(0)

    restore_position(loader, saved)

    assert loader.sampler.epoch == 3


def test_a_loader_of_ones_own_needs_only_the_two_methods() -> None:
    class Stream:
        at = 0

        def __iter__(self) -> Iterator[int]:
            return iter(range(self.at, 10))

        def state_dict(self) -> dict[str, Any]:
            return {"at": self.at, "mask": torch.arange(3)}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.at, self.mask = state["at"], state["mask"]

    stream, fresh = Stream(), Stream()
    stream.at = 4

    assert restore_position(fresh, capture_position(stream)) == ()
    assert fresh.at == 4
    assert torch.equal(fresh.mask, torch.arange(3))
