"""What an experiment sets of an option wherever that option is chosen: its ``when``."""

from __future__ import annotations

from collections.abc import Iterable

from omegaconf import DictConfig, OmegaConf, open_dict

from twin_merging.errors import UserError

WHEN = "when"
UNKNOWN = object()
SIZES = ("sparsifier.rank", "sparsifier.fraction", "sparsifier.budget", "sparsifier.energy")
"""Keys of which one at most is set, so that one of the command line stands for all."""


def settled(cfg: DictConfig, overrides: Iterable[str]) -> DictConfig:
    """A composed configuration with its ``when`` applied and removed.

    ``when`` maps ``GROUP=NAME`` to keys and values: ``merge_method=ties: {merge_method.scaling: 0.7}`` holds where the
    component of ``merge_method`` is ``ties``, unless the command line sets ``merge_method.scaling``. A key alone, such as
    ``paths.data``, holds where it is not null.

    Args:
        overrides: the job's arguments.

    Raises:
        UserError: if ``when`` is not of this form.
    """
    conditions = cfg.get(WHEN)
    if conditions is None:
        return cfg
    given = {text.lstrip("+~").partition("=")[0].partition("@")[0] for text in overrides}
    settled = cfg.copy()
    OmegaConf.set_readonly(settled, False)
    with open_dict(settled):
        del settled[WHEN]
        for condition, values in conditions.items():
            group, equals, name = str(condition).partition("=")
            value = OmegaConf.select(settled, f"{group}.name" if equals else group, default=UNKNOWN)
            if not isinstance(values, DictConfig) or (not equals and (value is UNKNOWN or OmegaConf.is_dict(value))):
                raise UserError(
                    "not a condition with keys", key=WHEN, found=condition,
                    expected="GROUP=NAME: {key: value}, or of a key that is set KEY: {key: value}",
                )  # fmt: skip
            if value == name if equals else value is not None:
                for key, value in values.items():
                    if not is_set(str(key), given):
                        OmegaConf.update(settled, str(key), value, merge=False, force_add=True)
    return settled


def is_set(key: str, given: set[str]) -> bool:
    """Whether a key, or one that stands for it, is among those that are given."""
    alike = SIZES if key in SIZES else (key,)
    return any(one == other or (one.startswith(other + ".") and "." in other) for one in alike for other in given)
