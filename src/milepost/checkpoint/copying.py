"""How does memory get into an arena with the least wait for the training?

Dense tensors on the CPU are moved as bytes by a few threads that meet once, at the end: torch would let its threads
meet for every tensor, which takes many times as long where the cores are busy. What has gaps or changes its dtype on
the way is copied by torch. CUDA memory is copied by the device on a stream of its own: the streams that the training
uses wait for it, the CPU does not.

**Invariant**: a :class:`Copying` ends, whatever happens to its thread, so nobody waits for it in vain.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from milepost.checkpoint.parallel import available_cores, share_out
from milepost.checkpoint.storages import Piece
from milepost.core.errors import StorageError

__all__ = ["Copying", "DeviceCopies", "Route", "Transfer", "is_dense", "live_memory", "pin", "route", "window"]

_BATCH = 4 << 20
_WORTH_A_THREAD = 8 << 20
_MOST_THREADS = 8  # more do not make memory faster
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How one piece of a snapshot gets into the arena.

    Attributes:
        piece: What is copied.
        address: Of its live memory, if its bytes are moved as they are; None: torch copies into ``window``.
        target: Its address in the arena.
        window: The arena's memory as a tensor, in the shape of :func:`live_memory`.
    """

    piece: Piece
    address: int | None
    target: int
    window: Tensor


def live_memory(piece: Piece, tensors: Sequence[Tensor]) -> Tensor:
    """What fills ``piece``, as one tensor: its elements in C order are those of the arena's memory.

    One-dimensional and contiguous where the memory is dense.
    """
    tensor = tensors[piece.tensor]
    if piece.start is not None:
        flat = torch.empty(0, dtype=torch.uint8, device=tensor.device)
        return flat.set_(tensor.untyped_storage(), piece.start, (piece.nbytes,), (1,))
    if str(tensor.dtype) == f"torch.{piece.stored}" and tensor.element_size() in _BITS:
        tensor = tensor.view(_BITS[tensor.element_size()])  # torch cannot copy every dtype, but every dtype's bits
    return tensor.as_strided((tensor.numel(),), (1,)) if is_dense(tensor) else tensor


def window(piece: Piece, source: Tensor, memory: Tensor) -> Tensor:
    """The place of ``piece`` in the arena, whose bytes are ``memory``, with the shape of ``source``."""
    stored: torch.dtype = getattr(torch, piece.stored)
    kept = piece.start is not None or source.element_size() * source.numel() == piece.nbytes
    dtype = source.dtype if kept else stored
    return memory[piece.offset : piece.offset + piece.nbytes].view(dtype).view(source.shape)


def route(piece: Piece, tensors: Sequence[Tensor], memory: Tensor) -> Route:
    """How ``piece`` gets into the arena, whose bytes are ``memory``."""
    source = live_memory(piece, tensors)
    place = window(piece, source, memory)
    movable = source.device.type == "cpu" and source.is_contiguous() and source.dtype == place.dtype
    address = source.data_ptr() if movable else None
    return Route(piece=piece, address=address, target=memory.data_ptr() + piece.offset, window=place)


class Transfer:
    """The copying of some pieces, prepared once and done at each save that finds the state where it was."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._by_torch = [way for way in routes if way.address is None]
        moved = [way for way in routes if way.address is not None]
        self._batches = _batches(moved)
        self._threads = _threads(sum(way.piece.nbytes for way in moved))

    def run(self, tensors: Sequence[Tensor]) -> DeviceCopies | None:
        """Copy on the CPU, and let devices begin to copy; None if no device has a part in it."""
        copies = self._copy_by_torch(tensors) if self._by_torch else None
        share_out(self._batches, _move, threads=self._threads)
        return copies

    def _copy_by_torch(self, tensors: Sequence[Tensor]) -> DeviceCopies | None:
        on_devices: list[tuple[Tensor, Tensor]] = []
        for way in self._by_torch:
            source = live_memory(way.piece, tensors)
            if source.is_cuda:
                on_devices.append((way.window, source))
            else:
                with torch.no_grad():
                    way.window.copy_(source)
        return DeviceCopies(on_devices) if on_devices else None


def is_dense(tensor: Tensor) -> bool:
    """Whether its elements lie without gaps, each once, in whatever order."""
    return tensor.is_contiguous() or torch.empty_like(tensor, device="meta").stride() == tensor.stride()


def _batches(routes: Iterable[Route]) -> list[list[tuple[int, int, int]]]:
    """Moves of (target, source, bytes), in pieces of work of one size."""
    batches: list[list[tuple[int, int, int]]] = []
    room = 0
    for way in routes:
        assert way.address is not None
        for start in range(0, way.piece.nbytes, _BATCH):
            nbytes = min(_BATCH, way.piece.nbytes - start)
            if nbytes > room:
                batches.append([])
                room = _BATCH
            batches[-1].append((way.target + start, way.address + start, nbytes))
            room -= nbytes
    return batches


def _move(shares: Iterator[list[tuple[int, int, int]]]) -> None:
    for moves in shares:
        for target, source, nbytes in moves:
            ctypes.memmove(target, source, nbytes)


def _threads(nbytes: int) -> int:
    return 1 if nbytes < _WORTH_A_THREAD else min(_MOST_THREADS, torch.get_num_threads(), available_cores())


class DeviceCopies:
    """Copies that CUDA devices make on streams of their own while the CPU goes on.

    Each begins when what the training has queued so far is done, and what the training queues from now on begins after
    it: an optimizer step cannot overtake it. The sources are held until then: no other tensor may get their memory.
    """

    def __init__(self, copies: list[tuple[Tensor, Tensor]]) -> None:
        self._copies = copies
        self._ended: list[torch.cuda.Event] = []
        for device in {source.device for _, source in copies}:
            stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            training = torch.cuda.current_stream(device)
            stream.wait_stream(training)
            with torch.cuda.stream(stream), torch.no_grad():
                for place, source in copies:
                    if source.device == device:
                        place.copy_(source, non_blocking=True)
            ended = stream.record_event()
            training.wait_event(ended)
            self._ended.append(ended)

    def wait(self) -> None:
        """Wait until the arena holds everything. Not for the training thread."""
        for ended in self._ended:
            ended.synchronize()
        self._copies.clear()


def pin(memory: Tensor) -> None:
    """Lock the pages of an arena for CUDA, which then copies without the CPU; refused, it copies all the same."""
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    address = memory.data_ptr()
    if int(runtime.cudaHostRegister(address, memory.numel(), 0)) == 0:
        weakref.finalize(memory, runtime.cudaHostUnregister, address)


class Copying:
    """The rest of a copy, on a thread of its own.

    Args:
        work: Fills the arena, and judges it; raises StorageError if it is not what the state was.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self.error: StorageError | None = None
        self._work = work
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._action: Callable[[StorageError | None], None] | None = None
        self._thread = threading.Thread(target=self._run, name="milepost-copy")
        try:
            self._thread.start()
        except RuntimeError:  # no thread left, or the interpreter is shutting down
            self._run()

    def then(self, action: Callable[[StorageError | None], None]) -> None:
        """Run ``action`` once: on the copying thread, or here and now if it has ended.

        It is given None if the arena holds the state, else why the snapshot was discarded.
        """
        with self._lock:
            if not self._ended.is_set():
                self._action = action
                return
        action(self.error)

    def wait(self, timeout: float) -> bool:
        """Wait until the arena is filled and judged; whether it was within ``timeout`` seconds.

        In a forked child, which has no such thread, there is nothing to wait for.
        """
        return os.getpid() != self._owner or self._ended.wait(timeout)

    @property
    def over(self) -> bool:
        """Whether nothing is left to do, the action included."""
        return os.getpid() != self._owner or not self._thread.is_alive()

    def join(self, timeout: float) -> bool:
        """Wait until it is over; whether it was within ``timeout`` seconds."""
        if not self.over:
            self._thread.join(timeout)
        return self.over

    def give_up(self, reason: StorageError) -> None:
        """Nobody waits any longer: the live memory may change, so what arrives is discarded."""
        with self._lock:
            if not self._ended.is_set():
                self.error = reason

    def _run(self) -> None:
        failure: StorageError | None = None
        try:
            self._work()
        except StorageError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - told to whoever waits for the save; the training must go on
            failure = StorageError(f"copying the state failed ({error!r})", cure="report this as a bug", kind="torn")
        finally:
            with self._lock:
                self.error = self.error or failure
                self._ended.set()
            if self._action is not None:
                self._action(self.error)
