"""Rows that are answered by text: what a language model reads, and what it is trained on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """A prompt and when its answer ends.

    Args:
        prompt: with its examples, if any, up to where the answer begins.
        max_new_tokens: of the answer.
        stop: the answer ends before the first of these.
        temperature: of sampling; 0 takes the likeliest token.
    """

    prompt: str
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0


@dataclass(frozen=True)
class Example:
    """What an expert learns: to continue ``prompt`` by ``completion``; loss is taken of the completion alone."""

    prompt: str
    completion: str
