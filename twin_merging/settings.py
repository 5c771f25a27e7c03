"""What an experiment sets of an option wherever that option is chosen: its ``when``."""

from __future__ import annotations

from collections.abc import Iterable

from omegaconf import DictConfig, OmegaConf, open_dict

from twin_merging.errors import UserError

WHEN = "when"
NULL = "null"
UNKNOWN = object()
SIZES = ("sparsifier.rank", "sparsifier.fraction", "sparsifier.budget", "sparsifier.energy")
"""Keys of which one at most is set, so that one of the command line stands for all."""


def settled(cfg: DictConfig, overrides: Iterable[str]) -> DictConfig:
    """A composed configuration with its ``when`` applied and removed.

    ``when`` maps ``GROUP=NAME`` to keys and values: ``merge_method=ties: {merge_method.scaling: 0.7}`` holds where the
    component of ``merge_method`` is ``ties``, unless the command line sets ``merge_method.scaling``. A key alone, such as
    ``paths.data``, holds where it is not null, and ``backbone.pretrained=null`` where it is. Several conditions, with
    commas between them, hold together; a later entry goes before an earlier one.

    Args:
        overrides: the job's arguments.

    Raises:
        UserError: if ``when`` is not of this form.
    """
    entries = cfg.get(WHEN)
    if entries is None:
        return cfg
    given = {text.lstrip("+~").partition("=")[0].partition("@")[0] for text in overrides}
    settled = cfg.copy()
    OmegaConf.set_readonly(settled, False)
    with open_dict(settled):
        del settled[WHEN]
        for conditions, values in entries.items():
            if not isinstance(values, DictConfig):
                raise _no_condition(conditions)
            if all([_holds(settled, condition.strip()) for condition in str(conditions).split(",")]):
                for key, value in values.items():
                    if not is_set(str(key), given):
                        OmegaConf.update(settled, str(key), value, merge=False, force_add=True)
    return settled


def _holds(cfg: DictConfig, condition: str) -> bool:
    key, equals, name = condition.partition("=")
    value = OmegaConf.select(cfg, key, default=UNKNOWN)
    if equals and name != NULL:
        return OmegaConf.select(cfg, f"{key}.name", default=UNKNOWN) == name
    if value is UNKNOWN or OmegaConf.is_dict(value):
        raise _no_condition(condition)
    return (value is None) == bool(equals)


def _no_condition(found: object) -> UserError:
    return UserError(
        "not a condition with keys", key=WHEN, found=found,
        expected="GROUP=NAME: {key: value}, or of a key that is set KEY: {key: value}, or of one that is not KEY=null: {key: value}",
    )  # fmt: skip


def is_set(key: str, given: set[str]) -> bool:
    """Whether a key, or one that stands for it, is among those that are given."""
    alike = SIZES if key in SIZES else (key,)
    return any(one == other or (one.startswith(other + ".") and "." in other) for one in alike for other in given)
