"""GLUE's columns with a handful of rows, and a random RoBERTa with a byte-level tokenizer learned on them."""

from __future__ import annotations

import random
from pathlib import Path

from twin_merging.tasks.glue import OFFICIAL, TASKS

CUES = {0: ["never", "broken", "gloomy"], 1: ["surely", "splendid", "café"], 2: ["perhaps", "maybe", "über"]}
FILLER = ["a", "river", "walks", "under", "seven", "bridges", "while", "clocks", "hum", "quietly"]
ROWS = {"train": 40, "validation": 12}


def save_glue(data: Path, tasks: tuple[str, ...] = tuple(TASKS)) -> Path:
    """``data``/glue/TASK as the hub lays it out: parquet shards. A cue word tells the label."""
    import pyarrow
    import pyarrow.parquet

    for task in tasks:
        folder = data / "glue" / task
        folder.mkdir(parents=True)
        for split, count in ROWS.items():
            rows = [_row(task, split, number) for number in range(count)]
            name = OFFICIAL.get(task, split) if split == "validation" else split
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{name}-00000-of-00001.parquet")
    return data


def save_roberta(folder: Path, data: Path, **config: int) -> Path:
    """A RoBERTa of the real class with random weights; without ``config`` of the base model's real size, but for its vocabulary."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaModel, RobertaTokenizerFast

    folder.mkdir(parents=True)
    learned = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    texts = [" ".join([*FILLER, *words]) for words in CUES.values()] * 3
    learned.train_from_iterator(texts, vocab_size=400, min_frequency=2, special_tokens=special, show_progress=False)
    learned.save_model(str(folder))
    tokenizer = RobertaTokenizerFast.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    RobertaModel(RobertaConfig(**(size | config))).save_pretrained(folder)
    return folder


def _row(task: str, split: str, number: int) -> dict:
    entry, chance = TASKS[task], random.Random(f"{task} {split} {number}")
    classes = len(entry.class_names) or 3
    label = number % classes
    texts = {column: f"{split} {number} " + " ".join(chance.sample(FILLER, 5)) for column in entry.columns}
    texts[entry.columns[-1]] += f" {chance.choice(CUES[label])}"
    return {**texts, "label": label if entry.class_names else 2.5 * label, "idx": number}
