"""Which tensors does a model hold, and under which names?

Names are those of ``model.state_dict()`` without what wrappers add: ``module.`` (DistributedDataParallel, DataParallel)
and ``_orig_mod.`` (torch.compile) name no module of the model. A wrapper is recognised by its class, so a module that
somebody called ``module`` keeps its name. A tied weight appears under each of its names, as the same tensor.

Refused, with their place: what would come back different. Sharded tensors, sparse and quantised ones, tensors on no
device, parameters that are not initialised yet, modules that keep state outside parameters and buffers.
"""

# ruff: noqa: SLF001 - torch has no public way to see second names of a module, or which buffers persist

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from milepost.core.errors import InvalidInputError

__all__ = [
    "capture_model",
    "describe_model",
    "is_frozen",
    "named_modules",
    "named_parameters",
    "named_tensors",
    "refuse_unsupported",
]

_WRAPPERS = {"DistributedDataParallel": "module", "DataParallel": "module", "OptimizedModule": "_orig_mod"}
_PLAIN = {Tensor, nn.Parameter}  # what others hang on these does not belong to their values
_SHARDED = {"FullyShardedDataParallel", "DeepSpeedEngine", "PipelineStage"}


def named_modules(model: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """Every module under every name it has, wrappers left out; ``prefix`` ends with a dot or is empty."""
    found: list[tuple[str, nn.Module]] = []
    _walk(model, prefix, found)
    return found


def _walk(model: nn.Module, prefix: str, found: list[tuple[str, nn.Module]]) -> None:
    inner = _unwrapped(model)
    found.append((prefix[:-1], inner))
    for name, child in inner._modules.items():  # not named_children: that leaves out the second name of a module
        if child is not None:
            _walk(child, f"{prefix}{name}.", found)


def _unwrapped(module: nn.Module) -> nn.Module:
    while (attribute := _inner_attribute(type(module).__mro__)) is not None:
        module = getattr(module, attribute)
    return module


@cache
def _inner_attribute(classes: tuple[type, ...]) -> str | None:
    """Where a wrapper of these classes keeps the module it wraps; None for a module of the model itself."""
    return next((_WRAPPERS[cls.__name__] for cls in classes if cls.__name__ in _WRAPPERS), None)


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers under their names; the live objects, not copies."""
    for path, module in named_modules(model):
        prefix = f"{path}." if path else ""
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield prefix + name, parameter
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield prefix + name, buffer


def named_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters under every name they have."""
    return ((name, tensor) for name, tensor in named_tensors(model) if isinstance(tensor, nn.Parameter))


def is_frozen(value: Any) -> bool:
    """Whether ``value`` is a parameter that is not trained."""
    return isinstance(value, nn.Parameter) and not value.requires_grad


def capture_model(model: nn.Module, place: str = "model") -> dict[str, Any]:
    """Parameters, persistent buffers and extra state by name; the live tensors, to be copied by the snapshot.

    Raises:
        InvalidInputError: Something in it cannot be saved; the message names its place.
    """
    for path, module in named_modules(model):
        if _is_special(type(module).__mro__):
            _refuse_module(module, f"{place}.{path}".rstrip("."))
    state: dict[str, Any] = dict(named_tensors(model))
    for name, module in _with_extra_state(model):
        state[name] = module.get_extra_state()
    return state


def _with_extra_state(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, module in named_modules(model):
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            yield f"{path}._extra_state".removeprefix("."), module


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Facts for a run's metadata: class, number of parameters, of trainable ones, bytes, and how many of each dtype."""
    parameters = {
        id(parameter): parameter
        for _, module in named_modules(model)
        for parameter in module._parameters.values()
        if parameter is not None
    }
    dtypes: dict[str, int] = {}
    for parameter in parameters.values():
        name = str(parameter.dtype).removeprefix("torch.")
        dtypes[name] = dtypes.get(name, 0) + parameter.numel()
    return {
        "class": type(_unwrapped(model)).__name__,
        "parameters": sum(parameter.numel() for parameter in parameters.values()),
        "trainable": sum(parameter.numel() for parameter in parameters.values() if parameter.requires_grad),
        "parameter_bytes": sum(parameter.numel() * parameter.element_size() for parameter in parameters.values()),
        "dtypes": dtypes,
    }


@cache
def _is_special(classes: tuple[type, ...]) -> bool:
    """Whether a module of these classes may hold more than its parameters and buffers."""
    saves: Any = getattr(classes[0], "_save_to_state_dict", None)
    return saves is not nn.Module._save_to_state_dict or any(cls.__name__ in _SHARDED for cls in classes)


def _refuse_module(module: nn.Module, place: str) -> None:
    kind = type(module)
    if any(cls.__name__ in _SHARDED for cls in kind.__mro__):
        raise _refused(place, f"a sharded {kind.__name__}", "save a gathered copy of it")
    if kind._save_to_state_dict is not nn.Module._save_to_state_dict:
        entries: dict[str, Any] = {}
        module._save_to_state_dict(entries, "", keep_vars=True)
        hidden = entries.keys() - module._parameters.keys() - module._buffers.keys() - {"_extra_state"}
        if hidden:
            raise _refused(
                f"{place}.{min(hidden)}",
                f"state that {kind.__name__} keeps outside parameters and buffers",
                "give the module get_extra_state and set_extra_state",
            )


def refuse_unsupported(tensor: Tensor, place: str) -> None:
    """Say no to a tensor whose bytes do not make it.

    Raises:
        InvalidInputError: The message names ``place`` and what it is.
    """
    kind = type(tensor)
    if torch.nn.parameter.is_lazy(tensor):
        raise _refused(place, "a parameter that has no shape yet", "run one batch through the model first")
    if kind.__torch_dispatch__ is not Tensor.__torch_dispatch__ or hasattr(tensor, "ds_tensor"):
        raise _refused(place, f"a tensor of type {kind.__name__}", "save a plain tensor with its full content")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        layout = str(tensor.layout).removeprefix("torch.")
        what = "quantised" if tensor.is_quantized else "nested" if tensor.is_nested else layout
        raise _refused(place, f"a {what} tensor", "save its plain parts instead")
    if tensor.device.type == "meta":
        raise _refused(place, "a tensor without data (device 'meta')", "load its weights first")
    if torch._is_functional_tensor(tensor) or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        raise _refused(place, "a tensor inside of a torch.func transformation", "save outside of it")
    if not torch._C._has_storage(tensor):
        raise _refused(place, f"a tensor on {tensor.device}, which shows no memory", "move it to the CPU")
    if kind not in _PLAIN and any(isinstance(value, Tensor) for value in vars(tensor).values()):
        raise _refused(place, f"a {kind.__name__}, which keeps tensors beside its data", "save its plain parts instead")


def _refused(place: str, what: str, cure: str) -> InvalidInputError:
    return InvalidInputError(f"{place}: {what} cannot be saved", cure=cure, kind="unsupported-state")
