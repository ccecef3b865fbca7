"""Where do the random number generators stand?

States are bytes and plain numbers, never tensors, so that a rank other than 0 can hand its own over in a small text.
All of them carry the cached Gaussian, without which the next ``random.gauss`` or ``numpy.random.normal`` would differ.

**Invariant**: taking a state draws no number; a training that is saved runs as one that is not.
"""

from __future__ import annotations

import random
import sys
from array import array
from typing import TYPE_CHECKING, Any

from milepost.core.errors import InvalidInputError

if TYPE_CHECKING:
    import torch

__all__ = ["capture_generator", "capture_rng", "restore_generator", "restore_rng"]


def capture_rng() -> dict[str, Any]:
    """States of Python, torch, CUDA (if it is in use) and NumPy (if it is imported)."""
    import torch

    state: dict[str, Any] = {"python": _python_state(random.getstate()), "torch": _bytes_of(torch.get_rng_state())}
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = [_bytes_of(device) for device in torch.cuda.get_rng_state_all()]
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        state["numpy"] = numpy.random.get_state(legacy=False)
    return state


def restore_rng(state: dict[str, Any]) -> tuple[str, ...]:
    """Set what :func:`capture_rng` took; returns a sentence for each generator that cannot be set here."""
    import torch

    random.setstate(_python_tuple(state["python"]))
    torch.set_rng_state(_tensor_of(state["torch"]))
    if "numpy" in state:
        import numpy as np

        np.random.set_state(state["numpy"])
    return _restore_cuda(state.get("cuda", []))


def _restore_cuda(saved: list[bytes]) -> tuple[str, ...]:
    import torch

    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for device, state in enumerate(saved[:present]):
        torch.cuda.set_rng_state(_tensor_of(state), device)
    if saved and present != len(saved):
        return (f"random numbers are not exact: saved for {len(saved)} CUDA devices, {present} are here",)
    return ()


def capture_generator(generator: Any) -> dict[str, Any]:
    """State of a generator of the user: torch's, one of NumPy's two kinds, or ``random.Random``.

    Raises:
        InvalidInputError: It is none of them.
    """
    import torch

    if isinstance(generator, torch.Generator):
        return {"kind": "torch", "state": _bytes_of(generator.get_state())}
    if isinstance(generator, random.Random):
        return {"kind": "python", "state": _python_state(generator.getstate())}
    if hasattr(generator, "bit_generator"):
        return {"kind": "numpy", "state": generator.bit_generator.state}
    if type(generator).__name__ == "RandomState":
        return {"kind": "numpy-legacy", "state": generator.get_state(legacy=False)}
    raise InvalidInputError(
        f"a generator of type {type(generator).__name__} has no state that is known",
        cure="use torch.Generator, numpy.random.Generator, numpy.random.RandomState or random.Random",
    )


def restore_generator(generator: Any, saved: dict[str, Any]) -> None:
    """Set ``generator`` to what :func:`capture_generator` took.

    Raises:
        InvalidInputError: It is of another kind than the one saved.
    """
    kind = capture_generator(generator)["kind"]
    if kind != saved["kind"]:
        raise InvalidInputError(
            f"the checkpoint holds a {saved['kind']} generator, this one is a {kind} generator",
            cure="build the loader as it was when it was saved",
        )
    if kind == "torch":
        generator.set_state(_tensor_of(saved["state"]))
    elif kind == "python":
        generator.setstate(_python_tuple(saved["state"]))
    elif kind == "numpy-legacy":
        generator.set_state(saved["state"])
    else:
        generator.bit_generator.state = saved["state"]


def _python_state(state: tuple[Any, ...]) -> dict[str, Any]:
    version, words, gauss = state
    return {"version": version, "words": array("I", words).tobytes(), "gauss": gauss}


def _python_tuple(state: dict[str, Any]) -> tuple[Any, ...]:
    words = array("I")
    words.frombytes(state["words"])
    return state["version"], tuple(words), state["gauss"]


def _bytes_of(state: torch.Tensor) -> bytes:
    return state.numpy().tobytes()


def _tensor_of(state: bytes) -> torch.Tensor:
    import torch

    return torch.frombuffer(bytearray(state), dtype=torch.uint8)
