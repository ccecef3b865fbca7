"""How large are the gradients and the parameters of a training, without waiting for its device?

Everything stays a tensor without dimensions on the device that computes it; whoever logs it reads it later. Nothing is
changed: no gradient, no parameter, no random number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from milepost.checkpoint.model_state import named_parameters
from milepost.core.errors import InvalidCallError, InvalidInputError

__all__ = ["check_watched", "measure"]

_foreach_norm = torch._foreach_norm  # noqa: SLF001 - what torch.nn.utils.get_total_norm is made of
#: Older versions add the squares up in the type of the tensors.
_TAKES_DTYPE = "dtype" in str(torch.ops.aten._foreach_norm.Scalar._schema)  # noqa: SLF001


def check_watched(model: Any, optimizer: Any) -> None:
    """Whether ``optimizer`` trains ``model``, and both can be measured by this process alone.

    Raises:
        InvalidCallError: One of them is something else.
        InvalidInputError: They have no parameter in common, or parameters are spread over several processes.
    """
    if not isinstance(model, nn.Module):
        raise InvalidCallError(f"watch got a {type(model).__name__} as model", cure="give a torch.nn.Module")
    if not isinstance(optimizer, Optimizer):
        cure = "give a torch.optim.Optimizer; of a framework's wrapper the one inside, which announces its steps"
        raise InvalidCallError(f"watch got a {type(optimizer).__name__} as optimizer", cure=cure)
    trained = _parameters(optimizer)
    if any(hasattr(parameter, "to_local") for parameter in trained):
        cure = 'log what clip_grad_norm_ returns: run.log({"grad_norm": norm})'
        raise InvalidInputError("the parameters are spread over several processes", cure=cure)
    if not {id(parameter) for parameter in trained} & {id(parameter) for _, parameter in named_parameters(model)}:
        raise InvalidInputError(
            "the optimizer trains no parameter of the model", cure="give the optimizer of this model to watch"
        )


@torch.no_grad()
def measure(model: nn.Module | None, optimizer: Optimizer) -> dict[str, Any]:
    """Norms and learning rates, as the optimizer is about to use them.

    Args:
        model: To tell its top-level modules apart as well; None: only the whole.
        optimizer: Of a training that is about to take a step.

    Returns:
        ``grad_norm``, ``param_norm`` (2-norms over all trained parameters, float32 or float64 tensors without
        dimensions), ``lr`` (or ``lr/0``, ``lr/1``, ... with several groups), and with ``model`` the norms of each of
        its top-level modules as ``grad_norm/<module>``. Empty while a CUDA graph is being captured.
    """
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return {}
    trained = [parameter for parameter in _parameters(optimizer) if not hasattr(parameter, "to_local")]
    owners = _owners(model) if model is not None else {}
    measured: dict[str, Any] = {}
    gradients = [(parameter, parameter.grad) for parameter in trained if parameter.grad is not None]
    scale = getattr(optimizer, "grad_scale", None)  # of a fused optimizer under a GradScaler; others see none
    for name, tensors in (("grad_norm", gradients), ("param_norm", [(one, one) for one in trained])):
        for suffix, norm in _by_owner(tensors, owners).items():
            measured[name + suffix] = norm
            if name == "grad_norm" and isinstance(scale, Tensor):
                measured[name + suffix] = norm / scale.to(norm.device, non_blocking=True)
    return measured | _learning_rates(optimizer)


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _owners(model: nn.Module) -> dict[int, str]:
    """By identity of a parameter, the top-level module that it belongs to."""
    return {id(parameter): name.partition(".")[0] for name, parameter in named_parameters(model)}


def _by_owner(tensors: Sequence[tuple[Tensor, Tensor]], owners: Mapping[int, str]) -> dict[str, Tensor]:
    """The norm of all, under the empty name, and of those of each owner; given are parameters and what to measure."""
    parts: dict[str, list[Tensor]] = {}
    for parameter, norm in zip([p for p, _ in tensors], _norms([t for _, t in tensors]), strict=True):
        parts.setdefault("", []).append(norm)
        if id(parameter) in owners:
            parts.setdefault(f"/{owners[id(parameter)]}", []).append(norm)
    return {suffix: _joined(norms) for suffix, norms in parts.items()}


def _norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The norm of each tensor; those of one device and type by one call."""
    dense = [_dense(tensor) for tensor in tensors]
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for number, tensor in enumerate(dense):
        groups.setdefault((tensor.device, tensor.dtype), []).append(number)
    found: dict[int, Tensor] = {}
    for (_, dtype), numbers in groups.items():
        found.update(zip(numbers, _of_one_kind([dense[number] for number in numbers], dtype), strict=True))
    return [found[number] for number in range(len(dense))]


def _dense(tensor: Tensor) -> Tensor:
    """The values of a sparse tensor, each place once; the parts of complex numbers."""
    if tensor.is_sparse:
        tensor = tensor.coalesce().values()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _of_one_kind(tensors: list[Tensor], dtype: torch.dtype) -> Iterable[Tensor]:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    if _TAKES_DTYPE:
        return _foreach_norm(tensors, 2, wide)
    return [torch.linalg.vector_norm(tensor, dtype=wide) for tensor in tensors]


def _joined(norms: Sequence[Tensor]) -> Tensor:
    """The norm of the whole out of those of its parts; on a device that computes, if one of them is on one."""
    home = next((norm.device for norm in norms if norm.device.type != "cpu"), norms[0].device)
    stacked = torch.stack([norm.to(home, non_blocking=True) for norm in norms])
    total: Tensor = torch.linalg.vector_norm(stacked)
    return total


def _learning_rates(optimizer: Optimizer) -> dict[str, Any]:
    # A learning rate that is a tensor is changed in place by its scheduler.
    rates = [group["lr"] for group in optimizer.param_groups if "lr" in group]
    rates = [rate.detach().clone().reshape(()) if isinstance(rate, Tensor) else rate for rate in rates]
    if len(rates) == 1:
        return {"lr": rates[0]}
    return {f"lr/{number}": rate for number, rate in enumerate(rates)}
