"""The schema and the files under configs/ say the same."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from twin_merging.compose import CONFIGS, plan
from twin_merging.config import IMAGES, LANGUAGE, REGISTRIES, RunConfig, domain_of

OPTIONS = sorted(path for group in REGISTRIES for path in (CONFIGS / group).glob("*.yaml"))
FITTING = {"backbone": "smollm2", "tasks": "generative", "finetune": "causal_lora", "evaluation": "native"}
"""What goes with an option for language models."""
OF_IMAGES = {"backbone": "dinov2_small", "tasks": "vision"}
EXPERIMENTS = sorted((CONFIGS / "exp").glob("*.yaml"))


def ids(paths: list[Path]) -> list[str]:
    return [f"{path.parent.name}/{path.stem}" for path in paths]


def keys_of(schema: type) -> dict:
    """Its keys in order; of a key that holds others, those."""
    return {
        field.name: keys_of(field.default_factory) if dataclasses.is_dataclass(field.default_factory) else None
        for field in dataclasses.fields(schema)
    }


def in_order(schema: dict | None) -> list | None:
    return None if schema is None else [(name, in_order(inner)) for name, inner in schema.items()]


def as_schema(content: dict, schema: dict) -> dict:
    """The keys of ``content``, opened where ``schema`` is."""
    return {name: as_schema(value, schema[name]) if schema.get(name) else None for name, value in content.items()}


def test_every_group_has_a_folder_and_every_folder_is_a_group():
    folders = {path.name for path in CONFIGS.iterdir() if path.is_dir()}
    assert folders == {*REGISTRIES, "exp"}


@pytest.mark.parametrize("path", OPTIONS, ids=ids(OPTIONS))
def test_an_option_has_exactly_its_schemas_keys_in_order(path):
    content = yaml.safe_load(path.read_text())
    registry = REGISTRIES[path.parent.name]
    assert content["name"] in registry
    from_defaults = {
        part.split("@")[1]
        for entry in content.pop("defaults", [])
        if isinstance(entry, dict)
        for part in entry
        if "@" in part
    }
    schema = {
        name: inner for name, inner in keys_of(registry[content["name"]].options).items() if name not in from_defaults
    }
    assert in_order(as_schema(content, schema)) == in_order(schema)


@pytest.mark.parametrize("path", OPTIONS, ids=ids(OPTIONS))
def test_an_option_says_what_it_is(path):
    assert path.read_text().startswith("# ")


def test_every_component_has_an_option_file():
    for group, registry in REGISTRIES.items():
        named = {yaml.safe_load(path.read_text())["name"] for path in (CONFIGS / group).glob("*.yaml")}
        assert named == set(registry), group


@pytest.mark.parametrize("path", OPTIONS, ids=ids(OPTIONS))
def test_every_option_composes_and_validates(path):
    group, name = path.parent.name, path.stem
    overrides = [f"{group}={name}"]
    domain = domain_of(REGISTRIES[group][yaml.safe_load(path.read_text())["name"]].options)
    fitting = {LANGUAGE: FITTING, IMAGES: OF_IMAGES}.get(domain, {})
    overrides = [f"{other}={option}" for other, option in fitting.items() if other != group] + overrides
    if name in ("local_text", "vision") or domain == IMAGES:  # they name no tasks, since those are the user's own
        overrides.append("tasks.names=[my_task]")
    (run,) = plan(overrides, multirun=False).jobs
    assert getattr(run, group).name == yaml.safe_load(path.read_text())["name"]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=ids(EXPERIMENTS))
def test_every_experiment_composes_and_is_named_as_its_file(path):
    if "hydra/sweeper: optuna" in path.read_text() and find_spec("hydra_plugins.hydra_optuna_sweeper") is None:
        pytest.skip("needs hydra-optuna-sweeper, which is not installed")
    launch = plan([f"+exp={path.stem}"], multirun=False)
    assert launch.jobs
    assert {run.exp for run in launch.jobs} == {path.stem}
    assert path.stem in launch.folder.parts
    assert f"+exp={path.stem}" in path.read_text()  # its header gives the command


def test_the_top_level_has_exactly_the_schemas_keys():
    content = yaml.safe_load((CONFIGS / "config.yaml").read_text())
    groups = [next(iter(entry)) for entry in content["defaults"] if isinstance(entry, dict)]
    given = {*(name for name in groups if name in REGISTRIES), *content} - {"defaults", "hydra"}
    assert given == {field.name for field in dataclasses.fields(RunConfig)}


@pytest.mark.parametrize("name", ["seed", "device", "precision", "cache", "plugins", "exp"])
def test_top_level_defaults_are_the_schemas(name):
    content = OmegaConf.load(CONFIGS / "config.yaml")
    field = next(field for field in dataclasses.fields(RunConfig) if field.name == name)
    default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
    assert content[name] == default


def test_every_key_says_what_it_means_and_its_default_is_in_range():
    for group, registry in REGISTRIES.items():
        for component in registry.values():
            for field in dataclasses.fields(component.options):
                if field.name == "name" or dataclasses.is_dataclass(field.default_factory):
                    continue
                assert field.metadata["help"], f"{group}.{field.name}"
                low, high = field.metadata["low"], field.metadata["high"]
                default = field.default
                if isinstance(default, (int, float)) and not isinstance(default, bool):
                    assert low is None or default >= low
                    assert high is None or default <= high
                if field.metadata["choices"]:
                    assert default in field.metadata["choices"]
