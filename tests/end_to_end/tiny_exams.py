"""Three tasks of the generative suite, small enough to learn in seconds, as files in HELM's layout."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path

THINGS = ["apple", "river", "stone", "cloud", "horse", "paper", "light", "green", "music", "table", "winter", "glass"]
TASKS = ("mmlu", "gsm8k", "xsum")
SUBJECTS, LETTER, NUMBER, SUMMARY = ("biology", "law"), "B", 7, "a cat sat"
WORDS = (" A", " B", " C", " D")  # a letter that answers is one token


def save_exams(folder: Path) -> Path:
    """``paths.data``: MMLU's right letter is always B, GSM8K's number 7, and every article has one summary."""
    chance = random.Random("exams")
    for subject in SUBJECTS:
        for split, count in {"dev": 5, "val": 30, "test": 12}.items():
            lines = [f"{_question(chance, split)},one,two,three,four,{LETTER}\n" for _ in range(count)]
            _write(folder / f"generative/mmlu/data/{split}/{subject}_{split}.csv", "".join(lines))
    for split, count in {"train": 40, "test": 10}.items():
        rows = [
            {"question": f"{_question(chance, split)} {number} plus?", "answer": f"It is {NUMBER}.\n#### {NUMBER}"}
            for number in range(count)
        ]
        _write(folder / f"generative/gsm8k/data/{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    asked = [{"instruction": f"What is {thing}?", "context": "", "response": "A thing."} for thing in THINGS]
    _write(folder / "generative/dolly/dolly_sample.jsonl", "".join(json.dumps(row) + "\n" for row in asked))
    articles = {
        split: [{"document": f"{_question(chance, split)} {number}.", "summary": SUMMARY} for number in range(count)]
        for split, count in {"train": 40, "validation": 2, "test": 10}.items()
    }
    place = folder / "generative/xsum/data/xsum-sampled.pk"
    place.parent.mkdir(parents=True)
    place.write_bytes(pickle.dumps(articles))
    return folder


def job(base: Path, data: Path) -> list[str]:
    """The arguments of a job that takes seconds."""
    return [
        "backbone=smollm2", f"backbone.pretrained={base}", "tasks=generative", f"tasks.names=[{','.join(TASKS)}]",
        "tasks.shots=0", f"paths.data={data}", "finetune=causal_lora", "finetune.rank=8", "finetune.alpha=16",
        "finetune.epochs=16", "finetune.lr=2e-2", "finetune.batch_size=8", "finetune.dropout=0", "finetune.max_length=512",
        "evaluation=native", "router.source=train", "router.epochs=60", "router.lr=5e-3", "precision=fp32", "device=cpu",
    ]  # fmt: skip


def _question(chance: random.Random, split: str) -> str:
    return f"{split} {' '.join(chance.sample(THINGS, 5))}"


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
