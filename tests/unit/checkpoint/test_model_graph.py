from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from milepost.checkpoint.model_graph import graph_of
from milepost.core.errors import InvalidCallError, InvalidInputError


class Restless(nn.Module):
    """Draws random numbers, changes its buffers in place and by new ones, and has parts in different modes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("kept", torch.zeros(2), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls = self.calls + 1
        self.kept.add_(torch.rand(2))
        random.random()
        np.random.random()
        self.norm.running_mean.mul_(0.5)
        return self.drop(self.norm(self.first(x)))


def trained(*, looked_at: bool) -> tuple[list[torch.Tensor], list[float]]:
    """Parameters, buffers and gradients after some steps, and the next random numbers."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    model = Restless()
    model.norm.eval()
    optimizer = torch.optim.Adam(model.parameters())
    for step in range(4):
        if looked_at and step == 2:
            buffers = dict(model.named_buffers())
            gradients = [parameter.grad for parameter in model.parameters()]
            assert graph_of(model, torch.ones(3, 4, requires_grad=True))
            assert all(buffer is buffers[name] for name, buffer in model.named_buffers())
            assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
            assert model.training
            assert not model.norm.training
        loss = model(torch.randn(3, 4)).square().sum()
        loss.backward()
        optimizer.step()
        if step != 1:  # an accumulation is under way while the model is looked at
            optimizer.zero_grad()
    tensors = [*model.parameters(), *model.buffers()]
    return [tensor.detach() for tensor in tensors], [random.random(), np.random.random(), torch.rand(1).item()]


def test_a_training_that_is_looked_at_computes_the_same_bits():
    plain, numbers = trained(looked_at=False)
    looked_at, same_numbers = trained(looked_at=True)
    assert numbers == same_numbers
    assert all(torch.equal(one, other) for one, other in zip(plain, looked_at, strict=True))


def test_the_graph_names_the_layers_and_wrappers_are_left_out():
    from tensorboard.compat.proto.graph_pb2 import GraphDef

    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    plain = GraphDef.FromString(graph_of(model, torch.zeros(1, 3)))
    assert any("Linear[0]" in node.name for node in plain.node)
    wrapped = GraphDef.FromString(graph_of(torch.compile(nn.DataParallel(model), backend="eager"), torch.zeros(1, 3)))
    assert [node.name for node in wrapped.node] == [node.name for node in plain.node]


def test_a_model_that_cannot_be_traced_is_named_with_the_cure_and_is_as_it_was(capsys):
    model = Restless()
    before = torch.get_rng_state()
    with pytest.raises(InvalidInputError, match=r"cannot be traced.*example that its forward takes"):
        graph_of(model, torch.zeros(1, 5))
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    assert model.calls.item() == 0
    with pytest.raises(InvalidCallError, match="got a function"):
        graph_of(lambda x: x, torch.zeros(1))
    assert capsys.readouterr().out == ""
