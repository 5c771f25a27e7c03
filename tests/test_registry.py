from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from twin_merging.config import REGISTRIES
from twin_merging.errors import UserError
from twin_merging.registry import Component, Registry, load_plugins


@dataclass
class Options:
    name: str = "mine"


def target(base, deltas, options):
    return base


def test_a_registry_is_a_mapping_of_components():
    registry = Registry("merge_method")
    registry.add("mine", Options, target)
    assert list(registry) == ["mine"]
    assert len(registry) == 1
    assert "mine" in registry
    assert "other" not in registry
    assert registry["mine"] == Component("mine", Options, target)
    assert registry["mine"].load() is target


def test_an_unknown_name_lists_the_known_and_the_nearest():
    registry = Registry("merge_method")
    registry.add("ties", Options, target)
    registry.add("dare", Options, target)
    with pytest.raises(UserError, match="unknown name") as caught:
        registry["tiez"]
    error = caught.value
    assert (error.key, error.found, error.expected, error.nearest) == (
        "merge_method.name",
        "tiez",
        "one of dare, ties",
        "ties",
    )


def test_a_name_is_given_once():
    registry = Registry("merge_method")
    registry.add("mine", Options, target)
    registry.add("mine", Options, target)  # a module that is imported again
    with pytest.raises(UserError, match="exists already") as caught:
        registry.add("mine", Options, lambda: None)
    assert (caught.value.key, caught.value.found) == ("merge_method", "mine")


def test_every_component_of_ours_can_be_imported_and_called():
    for group, registry in REGISTRIES.items():
        for name, component in registry.items():
            assert callable(component.load()), f"{group}={name}"
            assert component.code_hash() is None


def test_a_third_partys_code_is_identified_by_its_file():
    component = Component("mine", Options, target)
    assert component.code_hash() == hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def test_a_module_that_cannot_be_imported_is_named():
    with pytest.raises(UserError, match="cannot import") as caught:
        load_plugins(["no_such_module_here"])
    assert (caught.value.key, caught.value.found) == ("plugins", "no_such_module_here")


PLUGIN = """
from dataclasses import dataclass
from twin_merging.config import merge_methods, option

@dataclass
class Options:
    name: str = "{name}"
    strength: float = option(0.5, "how strong", low=0, high=1)

@merge_methods.register("{name}", options=Options)
def merge(base, deltas, options):
    return base
"""
PLAN = """
import sys
from twin_merging.compose import plan
from twin_merging.errors import UserError
try:
    print(plan(sys.argv[1:], False).jobs[0].merge_method)
except UserError as error:
    print(error)
"""


def planned(folder: Path, *overrides: str) -> str:
    """What planning says in a new process that starts in ``folder`` and finds packages there."""
    script = folder / "elsewhere" / "plan_it.py"
    script.parent.mkdir(exist_ok=True)
    script.write_text(PLAN)
    repository = str(Path(__file__).parents[1])
    packages = str(folder / "packages")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([repository, packages])}
    command = [sys.executable, str(script), "tasks.names=[cola]", *overrides]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_module_in_the_start_directory_adds_an_option_with_checked_keys(tmp_path):
    (tmp_path / "my_methods.py").write_text(PLUGIN.format(name="halfway"))
    asked = ("plugins=[my_methods]", "merge_method=halfway")
    assert planned(tmp_path, *asked, "merge_method.strength=0.75") == "Options(name='halfway', strength=0.75)"
    refused = planned(tmp_path, *asked, "merge_method.strength=2")
    assert refused.startswith("merge_method.strength: out of range\n  found:    2")
    assert "how strong" in refused


def test_an_installed_packages_entry_point_adds_an_option(tmp_path):
    about = tmp_path / "packages" / "other-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[twin_merging.components]\nother = other_methods\n")
    (tmp_path / "packages" / "other_methods.py").write_text(PLUGIN.format(name="elsewhere"))
    assert planned(tmp_path, "merge_method=elsewhere") == "Options(name='elsewhere', strength=0.5)"
    (tmp_path / "packages" / "other_methods.py").write_text("import no_such_module_here")
    assert planned(tmp_path).startswith("entry point other: cannot import this module")
