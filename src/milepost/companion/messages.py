"""What do the training process and its companion say to each other?

One message per packet of a ``SOCK_SEQPACKET`` pair, msgpack, tagged by its class. Descriptors (a segment, the arena, a
staged job) travel beside the message that names them, so neither side ever opens a path to reach the other's memory.

A message larger than a packet travels in memory of its own. One with text that has no UTF-8 (the path of a folder whose
name is no text) travels as JSON, which can spell it.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any

import msgspec

from milepost.io.memory import SharedSegment

__all__ = [
    "ArenaShared",
    "Channel",
    "Finish",
    "Finished",
    "FromCompanion",
    "FromTrainer",
    "Hello",
    "RuleFired",
    "SaveFailed",
    "SaveOver",
    "SaveRefused",
    "SaveStaged",
    "Saved",
    "SegmentShared",
    "Synced",
    "Told",
    "Waiting",
]

_LARGEST_PACKET = 1 << 16


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """First message, also to a companion that replaces a dead one.

    ``durable`` is the position up to which the log is known to be on disk; ``launch`` counts the companions of this
    process from 1: what is done once per attempt is done by the first. ``unprotected_since`` is the step since which no
    checkpoint was committed although one should have been.
    """

    layout: dict[str, Any]
    settings: dict[str, Any]
    log_id: bytes
    host: str
    boot_id: str
    pid: int
    start_time: float
    attempt: int
    rank: int
    world_size: int
    facts: dict[str, Any]
    durable: int = 0
    launch: int = 1
    unprotected_since: int | None = None


class SegmentShared(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A segment of the log, with its descriptor."""

    ordinal: int
    size: int


class ArenaShared(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The arena of snapshots, with its descriptor; replaces the one before.

    It is ``size`` bytes from ``start`` on of what the descriptor opens: the file ``path``, or memory (empty).
    """

    size: int
    start: int = 0
    path: str = ""


class SaveStaged(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A save to finish; the descriptor holds the encoded job (``size`` bytes).

    Its snapshot stands in the arena (``staged``), or its file is committed already, or it needs none.
    """

    number: int
    size: int
    staged: bool = True


class SaveRefused(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A save that could not be staged, or that companions died over: to be recorded."""

    step: int
    filename: str
    what: str
    cure: str
    kind: str


class Finish(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The run has ended, its last record is in the log: finish within ``timeout`` seconds, and leave."""

    timeout: float


class Synced(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The log is on disk up to ``position``."""

    position: int


class Saved(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Save ``number`` is committed; ``info`` holds the fields of a ``CheckpointInfo``."""

    number: int
    info: dict[str, Any]


class SaveFailed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Save ``number`` could not be committed."""

    number: int
    what: str
    cure: str
    kind: str


class SaveOver(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """All of save ``number`` is over, read-back and retention included."""

    number: int


class Told(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One clear line for the person at the terminal."""

    text: str


class RuleFired(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The rule ``rule`` of the settings found something; ``alert`` holds the fields of its ``Alerted``, step included.

    May come twice, after a companion died: ``cause`` in ``alert`` tells.
    """

    rule: int
    alert: dict[str, Any]
    metric: str = ""
    value: float | None = None


class Waiting(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What the end of the run is waiting for."""

    text: str


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """All is done but what ``left`` names."""

    left: list[str]


FromTrainer = Hello | SegmentShared | ArenaShared | SaveStaged | SaveRefused | Finish
FromCompanion = Synced | Saved | SaveFailed | SaveOver | Told | RuleFired | Waiting | Finished


class _Parcel(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The message stands in the memory whose descriptor comes first (``size`` bytes)."""

    size: int


_encode_plainly = msgspec.msgpack.Encoder().encode
_decode_plainly = msgspec.msgpack.Decoder(FromTrainer | FromCompanion | _Parcel).decode


def _encode(message: FromTrainer | FromCompanion) -> bytes:
    try:
        return _encode_plainly(message)
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(message)).encode()


def _decode(packet: bytes) -> FromTrainer | FromCompanion | _Parcel:
    if packet[:1] != b"{":  # a msgpack map never begins so
        decoded: FromTrainer | FromCompanion | _Parcel = _decode_plainly(packet)
        return decoded
    message: FromTrainer | FromCompanion = msgspec.convert(json.loads(packet), FromTrainer | FromCompanion)
    return message


class Channel:
    """One end of the pair. Sending is one system call, from any thread; receiving belongs to one thread."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    @staticmethod
    def pair() -> tuple[Channel, socket.socket]:
        """Our end, and the raw socket to hand to the other process."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return Channel(ours), theirs

    def fileno(self) -> int:
        """Descriptor, for ``select``."""
        return self._end.fileno()

    def send(
        self, message: FromTrainer | FromCompanion, descriptors: tuple[int, ...] = (), *, wait: bool = True
    ) -> bool:
        """Send one message.

        Args:
            message: What to say.
            descriptors: Open files the other side receives copies of.
            wait: Whether to wait while the other side's queue is full (up to the socket's timeout).

        Returns:
            False if the other side is gone, or (``wait=False``) its queue is full.
        """
        packet = _encode(message)
        if len(packet) <= _LARGEST_PACKET:
            return self._send(packet, descriptors, wait=wait)
        parcel = SharedSegment.create(len(packet), "milepost-message")
        try:
            parcel.map[:] = packet
            return self._send(_encode_plainly(_Parcel(size=len(packet))), (parcel.fd, *descriptors), wait=wait)
        finally:
            parcel.close()

    def _send(self, packet: bytes, descriptors: tuple[int, ...], *, wait: bool) -> bool:
        flags = 0 if wait else socket.MSG_DONTWAIT
        try:
            if descriptors:
                socket.send_fds(self._end, [packet], list(descriptors), flags)
            else:
                self._end.send(packet, flags)
        except OSError:
            return False
        return True

    def receive(self) -> tuple[FromTrainer | FromCompanion, tuple[int, ...]] | None:
        """Wait for the next message and its descriptors; None at the end: the other process has left, or died."""
        try:
            packet, descriptors, _, _ = socket.recv_fds(self._end, 2 * _LARGEST_PACKET, 4)
        except ConnectionError:
            return None
        if not packet:
            for descriptor in descriptors:
                os.close(descriptor)
            return None
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)  # noqa: FBT003 - the signature is os's
        message = _decode(packet)
        if not isinstance(message, _Parcel):
            return message, tuple(descriptors)
        parcel = SharedSegment.attach(descriptors[0], message.size)
        content = bytes(parcel.map[: message.size])
        parcel.close()
        unpacked = _decode(content)
        assert not isinstance(unpacked, _Parcel)
        return unpacked, tuple(descriptors[1:])

    def close(self) -> None:
        """Close this end; the other side reads the end of the conversation."""
        self._end.close()
