"""Components by name: one registry a config group, open to other packages.

A component is a *target* (what the pipeline calls) with *options* (a dataclass: its keys, types, defaults and ranges).
Ours are listed in ``config.py`` by import path, so that reading a configuration imports nothing heavy. Others join by

- an entry point of the group ``twin_merging.components`` that names a module, or
- a module named in the config key ``plugins``,

whose import runs ``@merge_methods.register("my_method", options=MyOptions)``. A component registered this way is also a
Hydra option, so ``merge_method=my_method`` works without a YAML file.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from twin_merging.errors import UserError, unknown

ENTRY_POINT_GROUP = "twin_merging.components"
CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@dataclass(frozen=True)
class Component:
    """A named component: its options' dataclass and the callable (or its ``module:attribute`` path)."""

    name: str
    options: type
    target: Callable[..., Any] | str

    def load(self) -> Any:
        """The target itself, a function or a class, imported on first use."""
        if not isinstance(self.target, str):
            return self.target
        module, attribute = self.target.split(":")
        return getattr(importlib.import_module(module), attribute)

    def code_hash(self) -> str | None:
        """SHA-256 of the file that defines a third-party component, so that editing it makes its results new.

        None for our own components, whose stages carry a version number instead.
        """
        if isinstance(self.target, str):
            return None
        source = inspect.getsourcefile(inspect.unwrap(self.target))
        return hashlib.sha256(Path(source).read_bytes()).hexdigest() if source else None


class Registry(Mapping[str, Component]):
    """name -> component of one config group. An unknown name raises an error that lists the known ones."""

    def __init__(self, group: str):
        self.group = group
        self._components: dict[str, Component] = {}

    def add(self, name: str, options: type, target: Callable[..., Any] | str) -> None:
        """Add a component.

        Raises:
            UserError: if another component already has this name.
        """
        component = Component(name, options, target)
        if name in self._components and self._components[name] != component:
            raise UserError("a component of this name exists already", key=self.group, found=name)
        self._components[name] = component

    def register(self, name: str, *, options: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorator for third parties: add the component and make ``<group>=<name>`` a Hydra option."""

        def decorate(target: Callable[..., Any]) -> Callable[..., Any]:
            from hydra.core.config_store import ConfigStore

            self.add(name, options, target)
            ConfigStore.instance().store(group=self.group, name=name, node=options, provider="plugin")
            return target

        return decorate

    def __getitem__(self, name: str) -> Component:
        try:
            return self._components[name]
        except KeyError:
            raise unknown(f"{self.group}.name", name, self._components) from None

    def __contains__(self, name: object) -> bool:
        return name in self._components

    def __iter__(self) -> Iterator[str]:
        return iter(self._components)

    def __len__(self) -> int:
        return len(self._components)


def load_plugins(modules: list[str]) -> None:
    """Import the modules that register third-party components: installed entry points, then ``modules``.

    The start directory is searched too, as ``python my_script.py`` would.

    Raises:
        UserError: if a module cannot be imported.
    """
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        _import(entry.value, f"entry point {entry.name}")
    for module in modules:
        _import(module, "plugins")


def _import(module: str, key: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"cannot import this module ({error})",
            key=key,
            found=module,
            expected="an importable module that registers components",
        ) from error
