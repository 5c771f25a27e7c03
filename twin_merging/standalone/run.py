"""One merge from its options to the folder that it leaves."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twin_merging.config import merge_methods
from twin_merging.errors import UserError
from twin_merging.merging.method import kind_of
from twin_merging.merging.stack import Stack
from twin_merging.standalone.adapter_output import as_adapter, write_adapter
from twin_merging.standalone.card import write_card
from twin_merging.standalone.layout import Layout, plan
from twin_merging.standalone.options import MergeOptions, needs_data
from twin_merging.standalone.sources import Source, check_router, find
from twin_merging.standalone.writing import check_new, check_space, fingerprint, unfinished, write_model
from twin_merging.validation import to_plain

log = logging.getLogger("twin_merging")


def run(options: MergeOptions) -> str:
    """Merge, and say in one line what was written.

    Raises:
        UserError: for anything in the inputs that does not fit; nothing is left in ``out`` then.
    """
    out = Path(options.out)
    check_new(out)
    static = _static_method(options)
    base = find(options.base, "base")
    experts = [find(given, f"experts[{number}]") for number, given in enumerate(options.experts)]
    if options.router is not None:
        check_router(options.router, len(experts))
    layout = plan(options, base, experts)
    is_twin = options.merge_method.name == "twin"
    if is_twin and getattr(options.sparsifier, "budget", None) is not None:
        from twin_merging.sparsifiers.storage import room  # which loads scipy

        room(Stack(layout.base, layout.experts, layout.selected), options.sparsifier)
    adapter = as_adapter(options, static, layout)
    check_space(out, 0 if adapter else sum(entry.nbytes for entry in layout.base.entries.values()))
    notes = _notes(layout, experts)
    for note in notes:
        log.info(note)
    with unfinished(out, fingerprint(options, to_plain(options), [base, *experts])) as folder:
        library, usage = "transformers", ""
        if is_twin:
            files, library, usage = _twin(options, static, base, experts, layout, folder, adapter)
        elif adapter:
            files, library = write_adapter(options, static, layout, folder), "peft"
        else:
            files = write_model(options, static, base, layout, folder)
        write_card(folder, options, base, experts, library=library, usage=usage, notes=notes)
    plural = "s" if len(files) > 1 else ""
    return f"{out}: {len(experts)} experts merged into {len(files)} file{plural}"


def _twin(
    options: MergeOptions, static: Any, base: Source, experts: list[Source], layout: Layout, folder: Path, adapter: bool
):  # fmt: skip
    from twin_merging.standalone.twin import usage_of, write_twin  # which loads scipy

    return write_twin(options, static, base, experts, layout, folder, adapter), "twin_merging", usage_of(experts)


def _static_method(options: MergeOptions):
    """The options of the method that makes one model: the shared expert's, of a twin."""
    method = getattr(options.merge_method, "shared", options.merge_method)
    key = "merge_method" if method is options.merge_method else "merge_method.shared"
    kind = kind_of(merge_methods[method.name].load())
    if kind.needs is not None:
        raise needs_data(key, method.name)
    if getattr(method, "index", 0) >= len(options.experts):
        raise UserError(
            "no expert has this place",
            key=f"{key}.index",
            found=method.index,
            expected=f"0 to {len(options.experts) - 1}",
        )
    return method


def _notes(layout: Layout, experts: Sequence[Source]) -> list[str]:
    """What was left out of the merge."""
    notes = []
    floating = [name for name, entry in layout.base.entries.items() if entry.dtype.is_floating_point]
    if kept := sorted(set(floating) - set(layout.selected)):
        notes.append(f"The base's own, unmerged: {_listed(kept)}.")
    for expert in experts:
        if names := layout.left_out.get(expert.key):
            notes.append(f"Left out of {expert.key}, since the base has no place for them: {_listed(names)}.")
    return notes


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
