"""Any Hugging Face text encoder with a classification or regression head a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import AutoModelForSequenceClassification

from twin_merging.backbones.encoders import Batch, EncoderBackbone, Row
from twin_merging.backbones.loading import load_tokenizer
from twin_merging.tasks.base import Task


@dataclass
class Tokens:
    """Token ids of a split's rows, unpadded."""

    rows: list[Row]

    @property
    def lengths(self) -> list[int]:
        """Of each row, in tokens."""
        return [len(row["input_ids"]) for row in self.rows]


class SequenceClassifierBackbone(EncoderBackbone):
    """Text, one a row or two: see ``EncoderBackbone``."""

    classifier = AutoModelForSequenceClassification

    @cached_property
    def tokenizer(self):
        """The pre-trained model's tokenizer."""
        return load_tokenizer(self.folder, self.options.trust_remote_code)

    def tokenize(self, texts: Sequence[tuple[str, ...]]) -> Tokens:
        """Token ids, cut to ``max_length``, of rows with one text each or two."""
        columns = [list(column) for column in zip(*texts, strict=True)]
        encoded = self.tokenizer(*columns, truncation=True, max_length=self.options.max_length)
        return Tokens([{key: values[row] for key, values in encoded.items()} for row in range(len(texts))])

    def inputs(self, task: Task, split: str, rows: Sequence[int] | None = None) -> Tokens:
        texts = task.splits[split].texts
        return self.tokenize(texts if rows is None else [texts[row] for row in rows])

    def collate(self, rows: Sequence[Row]) -> Batch:
        return dict(self.tokenizer.pad(list(rows), return_tensors="pt"))

    def example(self) -> Tokens:
        return self.tokenize([("a short text",), ("another one that is longer",)])

    def save_reader(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
