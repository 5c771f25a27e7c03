"""What an experiment sets of an option wherever that option is chosen: its ``when``."""

from __future__ import annotations

from collections.abc import Iterable

from omegaconf import DictConfig, OmegaConf, open_dict

from twin_merging.errors import UserError

WHEN = "when"
SIZES = ("sparsifier.rank", "sparsifier.fraction", "sparsifier.budget", "sparsifier.energy")
"""Keys of which one at most is set, so that one of the command line stands for all."""


def settled(cfg: DictConfig, overrides: Iterable[str]) -> DictConfig:
    """A composed configuration with its ``when`` applied and removed.

    ``when`` maps ``GROUP=NAME`` to keys and values: ``merge_method=ties: {merge_method.scaling: 0.7}`` holds where the
    component of ``merge_method`` is ``ties``, unless the command line sets ``merge_method.scaling``.

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
            if not equals or not isinstance(values, DictConfig):
                raise UserError(
                    "not a condition with keys", key=WHEN, found=condition, expected="GROUP=NAME: {key: value}"
                )
            if OmegaConf.select(settled, f"{group}.name") == name:
                for key, value in values.items():
                    if not _is_set(str(key), given):
                        OmegaConf.update(settled, str(key), value, merge=False, force_add=True)
    return settled


def _is_set(key: str, given: set[str]) -> bool:
    alike = SIZES if key in SIZES else (key,)
    return any(one == other or (one.startswith(other + ".") and "." in other) for one in alike for other in given)
