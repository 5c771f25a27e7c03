"""The safetensors format itself: eight bytes with the header's length, a JSON header, then the numbers."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from twin_merging.errors import UserError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "U16": torch.uint16, "U32": torch.uint32,
    "U64": torch.uint64, "C64": torch.complex64,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Entry(NamedTuple):
    """What a header says of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes they take."""
        return self.numel * self.dtype.itemsize


def header_of(entries: Mapping[str, Entry]) -> tuple[bytes, dict[str, int]]:
    """The first bytes of a file with these tensors, and where in the file each tensor's numbers start.

    Wider numbers come first, so that each tensor is aligned to its own.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    starts, end = {}, 0
    for name, entry in sorted(entries.items(), key=lambda item: -item[1].dtype.itemsize):
        starts[name], end = end, end + entry.nbytes
        header[name] = {"dtype": NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": [starts[name], end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    first = struct.pack("<Q", len(text)) + text
    return first, {name: len(first) + start for name, start in starts.items()}


def read_header(path: Path) -> tuple[dict[str, Entry], dict[str, int], bytes]:
    """A file's tensors, where each one's numbers start, and the header's bytes, without reading any number.

    Raises:
        UserError: if the file is cut off, or the header does not describe exactly its bytes.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        first = stream.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else size
        if length > size - 8:
            raise _damaged(path, "it is cut off")
        text = stream.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        entries = {name: Entry(DTYPES[item["dtype"]], tuple(item["shape"])) for name, item in header.items()}
        spans = {name: tuple(item["data_offsets"]) for name, item in header.items()}
        fits = all(stop - start == entries[name].nbytes for name, (start, stop) in spans.items())
        end = max((stop for _, stop in spans.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, f"its header cannot be read: {type(error).__name__} {error}") from error
    if not fits or 8 + length + end != size:
        raise _damaged(path, "its header does not fit its size")
    return entries, {name: 8 + length + start for name, (start, _) in spans.items()}, text


def _damaged(path: Path, why: str) -> UserError:
    return UserError(
        f"a damaged safetensors file ({why})", key=str(path), found=f"{path.stat().st_size} bytes",
        expected="a complete file", hint="fetch or copy it again",
    )  # fmt: skip
