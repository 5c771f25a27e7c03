"""A task that can be learned in a second, from rows in the words of the tiny models."""

from __future__ import annotations

import random

from backbones.tiny_models import WORDS

from twin_merging.tasks.base import Split, Task


def word_task(name: str, classes: int, seed: int) -> Task:
    """A task whose label is told by a word: ``classes`` of them, or a number for 0."""
    chance, used = random.Random(seed), set()

    def split(rows: int) -> Split:
        texts, labels = [], []
        while len(texts) < rows:
            label = chance.randrange(classes or 5)
            text = " ".join([WORDS[label], *chance.choices(WORDS[8:], k=chance.randint(2, 6))])
            if text not in used:
                used.add(text)
                texts.append((text,))
                labels.append(label if classes else label / 4)
        return Split(texts, labels)

    names, ends = (tuple("abcdefg"[:classes]), None) if classes else ((), (0.0, 1.0))
    kind = "single_label" if classes else "regression"
    splits = {"train": split(40), "validation": split(12), "test": split(4)}
    return Task(name, kind, names, ends, "accuracy" if classes else "pearson", splits, {})
