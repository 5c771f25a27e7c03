"""What a job's settings let a method know of the test rows that it would not know in use."""

from __future__ import annotations

from typing import Any

from twin_merging.config import RunConfig

TASK_VALUES = "leaks the task: parameters that do not merge have the values of the true task's expert"
TEST_INPUTS = "sees test inputs: learns from the inputs of the test rows, never from their labels"


def leaks(run: RunConfig) -> list[str]:
    """A sentence for each leak that a setting of this job makes, beside heads, which every table names itself."""
    changes = bool(run.parameters.exclude) or run.parameters.include != [".*"]
    merges = run.merge_method.name not in ("finetuned", "multitask")
    found = [TASK_VALUES] if getattr(run.evaluation, "excluded", None) == "task" and changes and merges else []
    return [*found, TEST_INPUTS] if _sees_test_inputs(run.merge_method) else found


def _sees_test_inputs(method: Any) -> bool:
    """Whether a method, or the one that makes its encoder or its shared expert, learns from test rows."""
    inner = (getattr(method, key, None) for key in ("merge", "shared"))
    return getattr(method, "inputs", None) == "test" or any(_sees_test_inputs(each) for each in inner if each)
