"""What one job left for people to look at, drawn into its folder: confusions of classes, and examples with their weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LOOKS = CONFUSION_FILE, EXAMPLES_FILE, THUMBNAILS_FILE = "confusion.json", "examples.json", "thumbnails.png"
CONFUSION, EXAMPLES = "confusion", "examples"  # how the names of pictures begin
FIGURES = "figures"


def draw_looks(result: dict[str, Any], job: Path) -> list[Path]:
    """Draw what ``LOOKS`` in a job's folder say of its tasks of images into ``figures/`` there; nothing without such tasks.

    ``confusion_TASK`` shows which classes are taken for which, ``examples`` test images with their answers and weights.
    Each job draws its own, so that the report of a sweep waits for none of them.
    """
    tasks = _read(job / CONFUSION_FILE, {"tasks": {}})["tasks"]
    pictured = {name: record for name, record in tasks.items() if record["of"] == "images"}
    examples, paths = _read(job / EXAMPLES_FILE, None), []
    if pictured:
        from twin_merging.reporting.class_figures import class_figures

        paths += class_figures(result, pictured, job / FIGURES)
    if examples:
        from twin_merging.reporting.example_figures import example_figure

        paths += example_figure(result, examples, job / THUMBNAILS_FILE, job / FIGURES)
    return paths


def looks_of(job: Path) -> list[Path]:
    """The PNG files that ``draw_looks`` left in a job's folder."""
    folder = job / FIGURES
    return sorted([*folder.glob(f"{CONFUSION}_*.png"), *folder.glob(f"{EXAMPLES}.png")])


def _read(path: Path, otherwise: Any) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else otherwise
