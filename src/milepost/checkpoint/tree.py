"""How does the state of a training become text without pickle, and come back with its exact types?

A node of the typed tree is what JSON holds without loss (null, true, false, integers up to 53 bits, text, arrays for
lists) or an object with exactly one key, the tag, which says how to read its value: ``{"tuple": [1, 2]}``,
``{"float": "0x1.8p+1"}``. The tags are listed in ``docs/format.md``.

Tensors and large arrays stay outside: the caller's ``leaf`` gives each an index, and the tree holds the index.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from milepost.checkpoint.plain_values import EnumMember, Node, PlainFields
from milepost.checkpoint.tree_decoder import TreeDecoder
from milepost.checkpoint.tree_encoder import TreeEncoder

__all__ = ["EnumMember", "PlainFields", "decode_tree", "encode_tree"]


def encode_tree(value: Any, *, leaf: Callable[[Any], int | None], place: str = "") -> Node:
    """The typed tree of ``value``, ready for :func:`json.dumps`.

    Args:
        value: Any nesting of the types that ``docs/format.md`` lists.
        leaf: Is asked about NumPy arrays and every object of a type that the tree does not know, so about tensors;
            returns the index under which it is stored outside, or None: arrays are then stored inside, others refused.
        place: What the root is called in errors.

    Raises:
        InvalidInputError: Something cannot be stored; the message names its place, for example
            ``optimizer.state[0].foo: Widget``.
    """
    return TreeEncoder(leaf).encode(value, place)


def decode_tree(node: Node, *, leaf: Callable[[int], Any]) -> Any:
    """The value that :func:`encode_tree` encoded.

    Objects of the user's own classes come back as :class:`PlainFields` and :class:`EnumMember`; torch's dtypes, sizes
    and devices as text and tuples where torch is not installed.

    Args:
        node: What :func:`json.loads` returned.
        leaf: Returns the object stored outside under an index.

    Raises:
        CorruptDataError: The node is no typed tree, too deep or too large.
    """
    return TreeDecoder(leaf).decode(node)
