"""Logged files, as the companion leaves them, for the tests of guests."""

from __future__ import annotations

import io
import json
import struct
import wave
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from milepost.core.events import MediaAdded

COUNTED = {
    "bin_edges": [-1.0, 0.0, 1.0, 2.0, 4.0, 8.0],
    "counts": [0, 1, 0, 3, 0],
    "min": 0.5,
    "max": 3.5,
    "sum": 9.5,
    "sum_squares": 28.0,
    "count": 4,
}
TABLE = {"columns": ["text", "score"], "rows": [["a | b", 0.5], ["line\nbreak", None]]}


def png(width: int = 3, height: int = 2, shade: int = 7) -> bytes:
    """A grey image."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = b"".join(b"\0" + bytes([shade]) * width for _ in range(height))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def wav(frames: int = 80, rate: int = 8000) -> bytes:
    memory = io.BytesIO()
    with wave.open(memory, "wb") as file:
        file.setparams((1, 2, rate, frames, "NONE", ""))
        file.writeframes(np.arange(frames, dtype="<i2").tobytes())
    return memory.getvalue()


def graph() -> bytes:
    """A model of two nodes."""
    from tensorboard.compat.proto import graph_pb2, node_def_pb2

    nodes = [node_def_pb2.NodeDef(name="input", op="Input")]
    nodes.append(node_def_pb2.NodeDef(name="layer", op="Linear", input=["input"]))
    definition: bytes = graph_pb2.GraphDef(node=nodes).SerializeToString()
    return definition


def kept(folder: Path, form: str, name: str, content: bytes | str | dict[str, Any], **fields: Any) -> MediaAdded:
    """The record of a file in ``folder`` with this content."""
    types = {
        "image": ("image/png", ".png"),
        "figure": ("image/png", ".png"),
        "audio": ("audio/wav", ".wav"),
        "histogram": ("application/json", ".json"),
        "table": ("application/json", ".json"),
        "html": ("text/html", ".html"),
        "text": ("text/plain", ".txt"),
        "graph": ("application/x-tensorboard-graph", ".pb"),
        "file": ("application/octet-stream", ".bin"),
    }
    media_type, suffix = types[form]
    if isinstance(content, dict):
        content = json.dumps(content)
    data = content.encode() if isinstance(content, str) else content
    fields = {"step": 0} | fields
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name.replace('/', '-')}_{fields['step']}_{len(list(folder.iterdir()))}{suffix}"
    path.write_bytes(data)
    return MediaAdded(name=name, path=path.name, media_type=media_type, size=len(data), form=form, **fields)


def one_of_each(folder: Path) -> list[MediaAdded]:
    return [
        kept(folder, "image", "sample", png(), step=1, caption="a caption"),
        kept(folder, "image", "grid", png(shade=1), step=1, facts={"index": 0}),
        kept(folder, "image", "grid", png(shade=2), step=1, facts={"index": 1}),
        kept(folder, "figure", "curve", png(5, 4), step=2),
        kept(folder, "histogram", "weights", COUNTED, step=3),
        kept(folder, "histogram", "weights", COUNTED, step=4),
        kept(folder, "audio", "voice", wav(), step=4),
        kept(folder, "table", "errors", TABLE, step=5),
        kept(folder, "html", "report", "<p>hello</p>", step=6),
        kept(folder, "text", "long", "many words " * 10, step=6),
        kept(folder, "graph", "model", graph()),
        kept(folder, "file", "notes.bin", b"\0\1\2", step=7),
    ]
