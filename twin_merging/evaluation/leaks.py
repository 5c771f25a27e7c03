"""What a job's settings let a method know of the test rows that it would not know in use."""

from __future__ import annotations

from twin_merging.config import RunConfig

TASK_VALUES = "leaks the task: parameters that do not merge have the values of the true task's expert"


def leaks(run: RunConfig) -> list[str]:
    """A sentence for each leak that a setting of this job makes, beside heads, which every table names itself."""
    changes = bool(run.parameters.exclude) or run.parameters.include != [".*"]
    merges = run.merge_method.name not in ("finetuned", "multitask")
    return [TASK_VALUES] if getattr(run.evaluation, "excluded", None) == "task" and changes and merges else []
