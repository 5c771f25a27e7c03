"""What a budget in bytes on disk leaves for compressed tensors, once the header and what is kept whole are counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from twin_merging.config import Magnitude, Svd
from twin_merging.errors import UserError
from twin_merging.merging.stack import Stack
from twin_merging.safetensors_format import Entry, header_of
from twin_merging.sparsifiers.sparse import Sparse
from twin_merging.sparsifiers.svd import Factors


def room(exclusive: Stack, options: Svd | Magnitude) -> int:
    """Bytes of ``options.budget`` that are left for singular triplets, or for kept numbers and their positions.

    Raises:
        UserError: if there are none, with the smallest budget possible.
    """
    assert options.budget is not None
    if isinstance(options, Svd):
        smallest = _fixed_bytes(exclusive, lambda dimensions: dimensions == 2, Factors._fields)
    else:
        compressed = [exclusive.base[name].dim() for name in exclusive.names if exclusive.base[name].dim() > 1]
        smallest = _fixed_bytes(exclusive, lambda dimensions: dimensions > 1, Sparse._fields)
        smallest += sum(8 * (len(exclusive) + dimensions) for dimensions in compressed)  # counts and shape
    if options.budget < smallest:
        raise UserError(
            "what is kept whole does not fit", key="sparsifier.budget", found=f"{options.budget} bytes",
            expected=f"at least {smallest} bytes", nearest=str(smallest), hint="parameters.exclude leaves parameters out",
        )  # fmt: skip
    return options.budget - smallest


def _fixed_bytes(exclusive: Stack, is_compressed: Callable[[int], bool], fields: Sequence[str]) -> int:
    """The bytes of the header and of what is kept whole.

    The header is counted with an entry of every field of every parameter and with offsets as long as all numbers would
    need, which is a little more than it takes.
    """
    entries: dict[str, Entry] = {}
    whole = 0
    for name in exclusive.names:
        base = exclusive.base[name]
        entry = Entry(torch.promote_types(base.dtype, torch.float32), (len(exclusive), *base.shape))
        if is_compressed(base.dim()):
            entries |= {f"{name}.{field}": entry for field in fields}
        else:
            entries[name] = entry
            whole += entry.nbytes
    return whole + len(header_of(entries)[0])
