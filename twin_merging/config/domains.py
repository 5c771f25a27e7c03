"""What kind of rows a backbone, tasks, fine-tuning or an evaluation is for."""

from __future__ import annotations

from typing import Any

LANGUAGE, CLASSES, IMAGES = "language", "classes", "images"
"""Answered by text; texts that heads answer for; images that heads answer for."""


def domain_of(options: Any) -> str:
    """Of a backbone's or of tasks' options: ``language`` or ``images`` where they say so, else ``classes``."""
    return getattr(options, "domain", CLASSES)


def answered_as(options: Any) -> str:
    """Who answers: ``language`` where it is a model's text, else ``classes``: heads answer for texts and images alike."""
    return LANGUAGE if domain_of(options) == LANGUAGE else CLASSES
