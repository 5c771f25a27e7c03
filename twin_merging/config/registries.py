"""The registries: which components each config group knows."""

from __future__ import annotations

from twin_merging.registry import Registry

backbones = Registry("backbone")
task_sources = Registry("tasks")
merge_methods = Registry("merge_method")
sparsifiers = Registry("sparsifier")
routers = Registry("router")
finetunings = Registry("finetune")
inferences = Registry("inference")
evaluations = Registry("evaluation")
trackers = Registry("tracker")
path_layouts = Registry("paths")

REGISTRIES = {
    registry.group: registry
    for registry in (
        backbones, task_sources, merge_methods, sparsifiers, routers, finetunings, inferences, evaluations, trackers,
        path_layouts,
    )
}  # fmt: skip
