"""Change keys of a composed configuration, and see what is refused."""

from __future__ import annotations

import pytest
from omegaconf import DictConfig, OmegaConf

from twin_merging.errors import UserError
from twin_merging.validation import validate


def changed(composed: DictConfig, **values) -> DictConfig:
    """A copy with some keys set; ``__`` in a name stands for a dot."""
    cfg = composed.copy()
    for name, value in values.items():
        OmegaConf.update(cfg, name.replace("__", "."), value, merge=not isinstance(value, dict), force_add=True)
    return cfg


def refused(composed: DictConfig, **values) -> UserError:
    with pytest.raises(UserError) as caught:
        validate(changed(composed, **values))
    return caught.value
