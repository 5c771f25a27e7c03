"""A sweep that ran to its end, which tests look at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from commands import Outcome

METHODS = "pretrained,finetuned,weight_averaging,task_arithmetic,twin"
SWEEP = ("-m", f"merge_method={METHODS}", "evaluation.heads=oracle,routed")


@dataclass(frozen=True)
class Finished:
    """A sweep of all methods and both heads that ran to its end."""

    outcome: Outcome
    folder: Path
    """The folder of the sweep: its report and a folder a job."""
    cache: Path
