"""What several tests need: the default configuration, real rows beside the repository, and offline assets."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from twin_merging import assets
from twin_merging.errors import UserError

ROOM = 8  # gigabytes that all tests together need for temporary files, if two workers run


def pytest_report_header() -> str | None:
    """A warning where the disk is too small, since it would come out as hundreds of odd errors."""
    free = shutil.disk_usage(tempfile.gettempdir()).free / 1e9
    return (
        f"WARNING: {tempfile.gettempdir()} has {free:.1f} GB free, of {ROOM} that tests need" if free < ROOM else None
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slowest files first, so that no worker is left alone with one of them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def composed() -> DictConfig:
    """The default configuration, once, since composing is slow."""
    from twin_merging.compose import composer, register_resolvers
    from twin_merging.overrides import compose_config

    register_resolvers()
    with composer():
        return compose_config([])


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Small real subsets of the benchmarks, which may lie beside the repository."""
    folder = Path(__file__).parents[2] / "shared/data"
    if not folder.is_dir():
        pytest.skip("needs real rows in ../shared/data, which is not here")
    return folder


@pytest.fixture(scope="session")
def need_asset() -> Callable[[str], Path]:
    """Give the folder that holds the named asset, or skip where it is neither cached nor fetchable."""

    def get(name: str) -> Path:
        folder = assets.asset_folder()
        try:
            assets.fetch([name], folder)
        except UserError as error:
            pytest.skip(f"asset {name} is not here and cannot be fetched: {error.message}")
        assets.archive(name, folder)  # a damaged one fails the test
        return folder

    return get


@pytest.fixture(scope="session")
def cuda() -> str:
    """``cuda``; skips where torch sees none. TWIN_TEST_DEVICE=cpu shows that such a test itself is right."""
    import torch

    device = os.environ.get("TWIN_TEST_DEVICE", "cuda")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch sees none here")
    return device
