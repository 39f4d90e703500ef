"""The wire format of protocol buffers, as far as pictures in messages need it: no generated code, no package."""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5


def read_fields(data: bytes | memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield a message's fields in their order: number, and value, of fixed ones as an unsigned integer.

    Raises:
        ValueError: the message is malformed.
    """
    view, at = memoryview(data), 0
    while at < len(view):
        key, at = read_varint(view, at)
        kind = key & 7
        value: int | memoryview
        if kind == _VARINT:
            value, at = read_varint(view, at)
        elif kind == _BYTES:
            length, at = read_varint(view, at)
            value, at = view[at : at + length], at + length
        elif kind in (_FIXED_32, _FIXED_64):
            length = 4 if kind == _FIXED_32 else 8
            value, at = int.from_bytes(view[at : at + length], "little"), at + length
        else:
            raise ValueError(f"a field of the unknown kind {kind}")
        if at > len(view):
            raise ValueError("it ends within a field")
        yield key >> 3, value


def read_varint(view: memoryview, at: int) -> tuple[int, int]:
    """Return the number that begins at a place, seven bits a byte, and the place behind it.

    Raises:
        ValueError: it does not end.
    """
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(view):
            break
        byte = view[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise ValueError("a number that does not end")
