"""Which tensors does a model hold, and under which names?

Names are those of ``model.state_dict()`` without what wrappers add: ``module.`` (DistributedDataParallel, DataParallel)
and ``_orig_mod.`` (torch.compile) name no module of the model. A wrapper is recognised by its class, so a module that
somebody called ``module`` keeps its name. A tied weight appears under each of its names, as the same tensor.

Refused, with their place: what would come back different. Sharded tensors, sparse and quantised ones, tensors on no
device, parameters that are not initialised yet, modules that keep state outside parameters and buffers.
"""

# ruff: noqa: SLF001 - torch has no public way to see second names of a module, or which buffers persist

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    "restore_model",
    "write_into",
]

_WRAPPERS = {"DistributedDataParallel": "module", "DataParallel": "module", "OptimizedModule": "_orig_mod"}
_PLAIN = {Tensor, nn.Parameter}  # what others hang on these does not belong to their values
_SHARDED = {"FullyShardedDataParallel", "DeepSpeedEngine", "PipelineStage"}


def named_modules(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every module under every name it has, wrappers left out; ``prefix`` ends with a dot or is empty."""
    inner = _unwrapped(model)
    yield prefix.removesuffix("."), inner
    for name, child in inner._modules.items():  # not named_children: that leaves out the second name of a module
        if child is not None:
            yield from named_modules(child, f"{prefix}{name}.")


def _unwrapped(module: nn.Module) -> nn.Module:
    while True:
        kinds = [cls.__name__ for cls in type(module).__mro__]
        attribute = next((_WRAPPERS[kind] for kind in kinds if kind in _WRAPPERS), None)
        if attribute is None:
            return module
        module = getattr(module, attribute)


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
        _refuse_module(module, f"{place}.{path}".rstrip("."))
    state: dict[str, Any] = dict(named_tensors(model))
    for name, module in _with_extra_state(model):
        state[name] = module.get_extra_state()
    return state


def _with_extra_state(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, module in named_modules(model):
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            yield f"{path}._extra_state".removeprefix("."), module


def restore_model(model: nn.Module, saved: Mapping[str, Any]) -> None:
    """Write ``saved`` into the tensors of ``model``; names, shapes and dtypes were compared before."""
    written: set[int] = set()
    for name, target in named_tensors(model):
        if name in saved and id(target) not in written:
            write_into(target, saved[name])
            written.add(id(target))
    for name, module in _with_extra_state(model):
        if name in saved:
            module.set_extra_state(saved[name])


def write_into(target: Tensor, saved: Tensor) -> None:
    """Copy ``saved`` into ``target``; of an expanded dimension, whose elements are one and the same, only one."""
    target, saved = target.detach(), saved.detach()
    for dimension, (length, stride) in enumerate(zip(target.shape, target.stride(), strict=True)):
        if stride == 0 and length > 1:
            target, saved = target.narrow(dimension, 0, 1), saved.narrow(dimension, 0, 1)
    target.copy_(saved)


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
