"""The plan of a merge: which tensors merge, checked from the files' headers before any number is read or written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from twin_merging.errors import UserError
from twin_merging.mapped import MappedCheckpoint
from twin_merging.parameters import compiled, is_statistic, select
from twin_merging.safetensors_format import Entry
from twin_merging.standalone.adapters import Adapter
from twin_merging.standalone.names import Renamed, is_output, prefixes, renamed, tied_input, ties, vocabulary
from twin_merging.standalone.options import MergeOptions
from twin_merging.standalone.sources import Source

SAME = ("model_type", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size")
"""Keys of config.json in which base and experts must agree. Equal shapes alone would let other heads pass."""
GENERATES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM")


@dataclass
class Layout:
    """What merges.

    Args:
        base: θ₀ as it was saved; the result has its names.
        experts: θ_t under the base's names.
        selected: the names that merge.
        left_out: for each expert the tensors that the base has no place for, such as a head.
    """

    base: MappedCheckpoint
    experts: list[Mapping[str, Tensor]] = field(default_factory=list)
    selected: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    @property
    def changed(self) -> list[str]:
        """What merges and differs from θ₀ in some expert, or may: all of it, where one is no adapter."""
        touched: set[str] = set()
        for expert in self.experts:
            touched |= {*expert.pairs, *expert.whole} if isinstance(expert, Adapter) else set(self.selected)
        return [name for name in self.selected if name in touched]


def plan(options: MergeOptions, base: Source, experts: Sequence[Source]) -> Layout:
    """Match every expert to the base.

    Raises:
        UserError: for the first thing in which they do not fit together.
    """
    if base.is_adapter:
        raise UserError("an adapter is no base", key="base", found=base.given, expected="the model it was trained on")
    entries = base.weights.entries
    if any(map(is_statistic, entries)):
        raise UserError(
            "BatchNorm's running statistics are found by images, of which a merge of files has none", key="base", found=base.given,
            expected="a model without BatchNorm", hint="run.py with backbone=... merges it and finds them on training images",
        )  # fmt: skip
    floating = [name for name, entry in entries.items() if entry.dtype.is_floating_point]
    layout = Layout(base.weights, selected=select(floating, options.parameters.include, options.parameters.exclude))
    for expert in experts:
        if expert.is_adapter:
            left_out = _add_adapter(options, base, expert, layout)
        else:
            left_out = _add_model(options, base, expert, layout)
        if left_out:
            layout.left_out[expert.key] = left_out
    return layout


def _add_model(options: MergeOptions, base: Source, expert: Source, layout: Layout) -> list[str]:
    _check_config(base, expert)
    names = _matched(base, expert, layout.selected)
    _check_shapes(options, base, expert, names, expert.weights.entries)
    layout.experts.append(Renamed(base.weights, expert.weights, names))
    return _left_out(options, base, expert)


def _add_adapter(options: MergeOptions, base: Source, expert: Source, layout: Layout) -> list[str]:
    adapter = Adapter(base.weights, expert)
    there = {name: Entry(base.weights.entries[name].dtype, adapter.shape(name)) for name in layout.selected}
    _check_shapes(options, base, expert, {name: name for name in there}, there)
    layout.experts.append(adapter)
    return adapter.left_out


def _check_config(base: Source, expert: Source) -> None:
    for key in SAME:
        found, expected = expert.config.get(key), base.config.get(key)
        if found is not None and expected is not None and found != expected:
            raise UserError(
                f"another {key} than the base's", key=expert.key, found=f"{found} in {expert.given}",
                expected=f"{expected} as in {base.given}", hint="experts and base must be of one architecture",
            )  # fmt: skip


def _matched(base: Source, expert: Source, selected: Sequence[str]) -> dict[str, str]:
    """The expert's name for each of the base's."""
    there = expert.weights.entries
    prefix = prefixes(base.weights.entries, there)
    names, missing = {}, []
    for name in selected:
        own = renamed(name, prefix)
        if own not in there and ties(expert.config):
            own = tied_input(own, there) or own
        names[name] = own
        if own not in there:
            missing.append(name)
    if missing:
        top = missing[0].partition(".")[0]
        raise UserError(
            f"{len(missing)} of the base's tensors are missing", key=f"{expert.key}: {missing[0]}",
            found=f"{expert.given} has {len(there)} tensors, such as {next(iter(there), 'none')}",
            expected=", ".join(missing[:4]) + (" ..." if len(missing) > 4 else ""),
            hint=f"parameters.exclude=['{top}.*'] keeps the base's own, where that is meant",
        )  # fmt: skip
    return names


def _left_out(options: MergeOptions, base: Source, expert: Source) -> list[str]:
    """The expert's tensors that the base has no place for. Those of a head are left out, others are an error."""
    prefix = prefixes(base.weights.entries, expert.weights.entries)
    known = {renamed(name, prefix) for name in base.weights.entries}
    extra = [
        name for name, entry in expert.weights.entries.items() if entry.dtype.is_floating_point and name not in known
    ]
    extra = [name for name in extra if not (is_output(name) and ties(expert.config))]
    generates = any(kind.endswith(GENERATES) for kind in base.config.get("architectures") or [])
    if generates and ties(base.config):
        for name in filter(is_output, extra):
            raise UserError(
                "this expert has an output embedding of its own and the base ties it to the input embedding",
                key=f"{expert.key}: {name}", found=expert.given, expected="tie_word_embeddings as in the base",
            )  # fmt: skip
    unwanted = compiled(options.parameters.exclude, "parameters.exclude")
    wanted = [name for name in extra if not any(pattern.fullmatch(name) for pattern in unwanted)]
    body = {renamed(name, prefix).partition(".")[0] for name in base.weights.entries}
    inside = [name for name in wanted if name.partition(".")[0] in body]
    if inside:
        raise UserError(
            f"{len(inside)} tensors that the base does not have", key=f"{expert.key}: {inside[0]}", found=expert.given,
            expected=f"the tensors of {base.given}; heads beside them are left out",
            hint=f"parameters.exclude=['{inside[0].rpartition('.')[0]}.*'] leaves them out, where that is meant",
        )  # fmt: skip
    return extra


def _check_shapes(
    options: MergeOptions, base: Source, expert: Source, names: Mapping[str, str], there: Mapping[str, Entry]
) -> None:
    for name, own in names.items():
        expected, found = base.weights.entries[name].shape, there[own].shape
        if expected == found:
            continue
        sizes = base.config.get("vocab_size"), expert.config.get("vocab_size")
        if expected[1:] != found[1:] or not expected or (expected[0], found[0]) != sizes:
            raise UserError(
                "a tensor of the wrong shape", key=f"{expert.key}: {own}", found=list(found),
                expected=f"{list(expected)}, as in the base", hint="experts and base must be of one architecture",
            )  # fmt: skip
        if options.vocabulary == "same":
            raise UserError(
                "vocabularies of different sizes", key=f"{expert.key}: {own}", found=f"{found[0]} tokens",
                expected=f"{expected[0]} tokens as in the base",
                hint="vocabulary=base merges the tokens that both have and keeps the base's others",
            )  # fmt: skip
        _check_common_tokens(base, expert, min(expected[0], found[0]))


def _check_common_tokens(base: Source, expert: Source, rows: int) -> None:
    ours, theirs = vocabulary(base.folder), vocabulary(expert.folder)
    if ours is None or theirs is None:
        raise UserError(
            "without tokenizers the tokens of two vocabularies cannot be compared", key="vocabulary", found="base",
            expected="tokenizer.json, vocab.json or vocab.txt in both folders",
        )  # fmt: skip
    for number in range(rows):
        if number in ours and number in theirs and ours[number] != theirs[number]:
            raise UserError(
                "the two vocabularies give one number to different tokens", key=f"{expert.key}: vocabulary",
                found=f"{number} is {theirs[number]!r}", expected=f"{ours[number]!r} as in the base",
            )  # fmt: skip
