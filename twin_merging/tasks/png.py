"""Grey pictures as PNG files whose bytes depend on the pixels alone, so that a hash of them names the picture."""

from __future__ import annotations

import struct
import zlib

import numpy as np

from twin_merging.errors import UserError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY_8_BIT = (8, 0, 0, 0, 0)  # bits, colour type, compression, filter and interlace methods
MOST_STORED = 0xFFFF  # bytes of one block


def encode_grey(pixels: np.ndarray) -> bytes:
    """A picture without loss; its bytes are stored and not compressed, since compressors differ between builds of zlib.

    Args:
        pixels: [rows, columns], uint8, 0 for black.

    Raises:
        UserError: for another shape or type, or no pixel.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or 0 in pixels.shape:
        raise UserError(
            "no grey picture",
            found=f"{pixels.dtype} {pixels.shape}",
            expected="uint8 of [rows, columns], none of them 0",
        )
    rows, columns = pixels.shape
    lines = np.zeros((rows, columns + 1), np.uint8)  # each line begins with its filter: none
    lines[:, 1:] = pixels
    header = struct.pack(">II5B", columns, rows, *GREY_8_BIT)
    return SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", _stored(lines.tobytes())) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _stored(content: bytes) -> bytes:
    """A zlib stream of stored blocks (RFC 1950 and 1951)."""
    stream = [b"\x78\x01"]
    for start in range(0, len(content), MOST_STORED):
        block = content[start : start + MOST_STORED]
        is_last = start + MOST_STORED >= len(content)
        stream += [struct.pack("<BHH", is_last, len(block), len(block) ^ MOST_STORED), block]
    return b"".join([*stream, struct.pack(">I", zlib.adler32(content))])
