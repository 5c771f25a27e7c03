"""Arrays of small pictures and of labels out of gzip files: the idx format of MNIST, and pickles of numpy arrays."""

from __future__ import annotations

import gzip
import io
import math
import pickle
import pickletools
import zlib
from typing import Any, NamedTuple

import numpy as np

from twin_merging.errors import UserError

MOST_BYTES = 1 << 28  # of any array that is read here: 256 MiB
MOST_OPERATIONS = 200  # of a pickle that holds one array
IDX_BYTES = 8  # the type code of uint8
PLAIN = frozenset({
    "PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINGET", "STACK_GLOBAL", "REDUCE", "BUILD", "NONE", "NEWTRUE", "NEWFALSE",
    "BININT", "BININT1", "BININT2", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "SHORT_BINUNICODE", "SHORT_BINBYTES", "BINBYTES",
})  # fmt: skip
"""What a pickle of protocol 4 does to say an array."""


def gunzip(content: bytes, key: str) -> bytes:
    """Decompress at most ``MOST_BYTES``.

    Raises:
        UserError: naming ``key`` if the content is damaged or holds more.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            plain = file.read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(key, "a gzip file", error) from error
    if len(plain) > MOST_BYTES:
        raise _damaged(key, f"at most {MOST_BYTES} bytes", "more")
    return plain


def read_idx(content: bytes, key: str) -> np.ndarray:
    """An array of uint8 in the idx format: two zeros, type, number of axes, each axis as a big-endian integer, bytes.

    Raises:
        UserError: naming ``key`` if it is not one, cut off or too long.
    """
    if len(content) < 4 or content[:3] != bytes([0, 0, IDX_BYTES]):
        raise _damaged(key, "the idx format with unsigned bytes", content[:4].hex() or "nothing")
    axes, start = content[3], 4 + 4 * content[3]
    shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(axes)]
    if not 1 <= axes <= 3 or len(content) != start + math.prod(shape):
        raise _damaged(key, f"the bytes of shape {shape[:3]}", f"{len(content) - start} bytes")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_pickled(content: bytes, key: str) -> np.ndarray:
    """The one array of uint8 or int64 that a pickle holds. Nothing that the pickle names is called or imported.

    Only operations that an array needs are let through, and what stands for numpy's functions notes what it is given.

    Raises:
        UserError: naming ``key`` for any other pickle, or a damaged one.
    """
    try:
        for done, (operation, _, _) in enumerate(pickletools.genops(content)):
            if operation.name not in PLAIN or done >= MOST_OPERATIONS:
                raise _damaged(key, "a pickle of one array", f"the operation {operation.name}")
        found = _ArraysOnly(io.BytesIO(content)).load()
        return found.array()
    except UserError:
        raise
    except Exception as error:  # a pickle's own mistakes raise nearly any type
        raise _damaged(key, "a pickle of one array", error) from error


class _Type:
    """In place of ``numpy.dtype``: a type's name, and its byte order from the state."""

    def __init__(self, name: str, *_: bool):
        self.name, self.order = name, "|"

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    def plain(self) -> np.dtype:
        found = {("u1", "|"): np.uint8, ("i8", "<"): np.int64}.get((self.name, self.order))
        if found is None:
            raise ValueError(f"an array of {self.order}{self.name}")
        return np.dtype(found).newbyteorder("<")


class _State(NamedTuple):
    version: int
    shape: tuple[int, ...]
    dtype: _Type
    is_fortran: bool
    content: bytes


class _Array:
    """In place of an array that numpy would rebuild: it notes the state and calls nothing."""

    state: _State | None = None

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: tuple) -> None:
        self.state = _State(*state)

    def array(self) -> np.ndarray:
        if self.state is None or self.state.is_fortran or not isinstance(self.state.content, bytes):
            raise ValueError("an array without its numbers in rows")
        return np.frombuffer(self.state.content, self.state.dtype.plain()).reshape(self.state.shape)


class _ArraysOnly(pickle.Unpickler):
    """Knows three names, and gives none of them what it means to numpy."""

    def find_class(self, module: str, name: str) -> type:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _Array
        if module == "numpy" and name in ("ndarray", "dtype"):
            return _Array if name == "ndarray" else _Type
        raise pickle.UnpicklingError(f"{module}.{name} is no part of an array")


def _damaged(key: str, expected: str, found: object) -> UserError:
    return UserError("the file is damaged or not what it should be", key=key, found=found, expected=expected)
