"""How is a model drawn, without the training noticing that it was looked at?

TensorBoard's own tracer runs the model on an example. Random numbers, buffers, modes and gradients are afterwards what
they were, to the bit and to the object.
"""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from milepost.checkpoint.model_state import named_modules
from milepost.checkpoint.rng import capture_rng, restore_rng
from milepost.core.errors import InvalidCallError, InvalidInputError, MissingDependencyError

__all__ = ["graph_of"]


def graph_of(model: nn.Module, example_input: Any) -> bytes:
    """The model's graph as a serialized ``GraphDef`` of TensorBoard.

    Args:
        model: Bare, or wrapped by DDP or ``torch.compile``.
        example_input: A tensor, or a tuple of the arguments of ``forward``.

    Raises:
        MissingDependencyError: ``tensorboard`` is absent.
        InvalidCallError: ``model`` is no module.
        InvalidInputError: The model cannot be traced.
    """
    if not isinstance(model, nn.Module):
        raise InvalidCallError(f"log_model_graph got a {type(model).__name__}", cure="give a torch.nn.Module")
    if importlib.util.find_spec("tensorboard") is None:
        raise MissingDependencyError("log_model_graph needs TensorBoard", cure='pip install "milepost[tensorboard]"')
    _, bare = named_modules(model)[0]
    with _as_it_was(bare), tempfile.TemporaryDirectory(prefix="milepost-graph-") as folder:
        try:
            _trace(bare, example_input, folder)
        except Exception as error:  # whatever the model's own code raises
            raise InvalidInputError(
                f"the model cannot be traced ({type(error).__name__}: {str(error)[:300]})",
                cure="give an example that its forward takes, as a tensor or a tuple of arguments",
            ) from error
        return _graph_in(Path(folder))


@contextlib.contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Put back random numbers, buffers, modes and gradients."""
    random_numbers = capture_rng()
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False)
    ]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for module, name, buffer, content in buffers:
                if not torch.equal(buffer, content):
                    buffer.copy_(content)
                setattr(module, name, buffer)  # a forward may have put another tensor in its place
        for parameter, gradient in gradients:
            parameter.grad = gradient
        restore_rng(random_numbers)


def _trace(model: nn.Module, example_input: Any, folder: str) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with warnings.catch_warnings(), contextlib.redirect_stdout(None), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns of what a trace cannot hold; this one is only drawn
        writer: Any = SummaryWriter(folder)
        try:
            writer.add_graph(model, example_input, use_strict_trace=False)
        finally:
            writer.close()


def _graph_in(folder: Path) -> bytes:
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    for path in folder.iterdir():
        for content in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(content)
            if event.graph_def:
                return bytes(event.graph_def)
    raise InvalidInputError("TensorBoard drew no graph of the model", cure="report it with the model's class")
