"""Is the batch that was fetched ahead made again with the random numbers that it had?"""

from __future__ import annotations

import pickle

import torch

from milepost.checkpoint.rng import capture_rng, restore_rng
from milepost.integrations.huggingface_draws import Draws


def noisy(samples: list[int]) -> list[float]:
    return [sample + torch.rand(()).item() for sample in samples]


class WithTokenizer:
    tokenizer = "of the collator"

    def __call__(self, samples: list[int]) -> list[float]:
        return noisy(samples)


def test_a_batch_ahead_and_all_that_is_drawn_behind_it_come_again() -> None:
    torch.manual_seed(1)
    draws = Draws(noisy)
    draws([1])
    ahead = draws([2])
    draws.used(1)
    torch.rand(3)  # the training's own
    before, behind = draws.ahead, capture_rng()
    following = [draws([3]), torch.rand(())]

    torch.manual_seed(2)
    again = Draws(noisy)
    assert before is not None
    again.make_again(before, behind)
    assert again([2]) == ahead
    assert again.is_exact
    assert [again([3]), torch.rand(())] == following


def test_there_is_none_ahead_at_the_end_of_an_epoch_or_where_workers_make_the_batches() -> None:
    draws = Draws(noisy)
    draws([1])
    draws.used(1)
    assert draws.ahead is None
    draws.used(4)  # made by workers
    assert draws.ahead is None


def test_remembering_draws_nothing_and_the_collator_can_still_be_asked_and_sent_to_workers() -> None:
    state = capture_rng()
    plain = noisy([1, 2])
    restore_rng(state)
    assert Draws(noisy)([1, 2]) == plain
    sent = pickle.loads(pickle.dumps(Draws(WithTokenizer())))
    assert sent.tokenizer == "of the collator"
    assert len(sent([0])) == 1
