"""A model and tasks that are small enough to train in a second, in the forms that a user would bring."""

from __future__ import annotations

import json
import random
from pathlib import Path

FILLER = [f"word{number}" for number in range(60)]
COLOURS = {"warm": ["red", "orange", "yellow"], "cold": ["blue", "green", "violet"]}
SIZES = {"tiny": 0.5, "small": 1.5, "medium": 2.5, "large": 3.5, "huge": 4.5}
ANSWERS = {"refused": ["never", "nobody"], "agreed": ["surely", "gladly"], "unsure": ["maybe", "perhaps"]}
CUES = [*COLOURS["warm"], *COLOURS["cold"], *SIZES, *(word for words in ANSWERS.values() for word in words)]
ROWS = {"train": 96, "validation": 48, "test": 48}
TASKS = ("colour", "size", "answer")


def save_tiny_bert(folder: Path, hidden: int = 32, seed: int = 0) -> Path:
    """A randomly initialized BERT of 2 layers with a WordPiece tokenizer, saved as Hugging Face does."""
    import torch
    from transformers import BertConfig, BertModel

    tokenizer = _tokenizer()
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, num_hidden_layers=2, num_attention_heads=2, intermediate_size=2 * hidden,
        max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tasks(folder: Path) -> Path:
    """Three tasks in the form of ``tasks=local_text``: classes in JSON lines, a regression in CSV, pairs in parquet."""
    for name in TASKS:
        save_task(folder, name)
    return folder


def save_task(folder: Path, name: str) -> Path:
    """One of the tasks; returns its folder."""
    place = folder / "text" / name
    place.mkdir(parents=True)
    about, rows = {"colour": _colour, "size": _size, "answer": _answer}[name]()
    (place / "labels.json").write_text(json.dumps(about))
    for split, count in ROWS.items():
        write = {"colour": _write_jsonl, "size": _write_csv, "answer": _write_parquet}[name]
        write(place / split, [next(rows) for _ in range(count)])
    return place


def _tokenizer():
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CUES, *FILLER]
    inner = Tokenizer(WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = BertPreTokenizer()
    inner.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def _text(chance: random.Random, cue: str | None = None) -> str:
    words = chance.sample(FILLER, 6)
    if cue is not None:
        words[chance.randrange(6)] = cue
    return " ".join(words)


def _colour():
    def rows():
        chance = random.Random("colour")
        while True:
            label = chance.choice(list(COLOURS))
            yield {"text": _text(chance, chance.choice(COLOURS[label])), "label": label}

    return {"names": list(COLOURS)}, rows()


def _size():
    def rows():
        chance = random.Random("size")
        while True:
            cue = chance.choice(list(SIZES))
            yield {"text": _text(chance, cue), "label": SIZES[cue] + chance.uniform(-0.4, 0.4)}

    return {"range": [0, 5]}, rows()


def _answer():
    def rows():
        chance = random.Random("answer")
        while True:
            label = chance.randrange(len(ANSWERS))
            cue = chance.choice(list(ANSWERS.values())[label])
            yield {"question": _text(chance), "reply": _text(chance, cue), "label": label}

    return {"names": list(ANSWERS), "columns": ["question", "reply"]}, rows()


def _write_jsonl(path: Path, rows: list[dict]) -> None:
    path.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_csv(path: Path, rows: list[dict]) -> None:
    lines = ["text,label", *(f"{row['text']},{row['label']}" for row in rows)]
    path.with_suffix(".csv").write_text("\n".join(lines) + "\n")


def _write_parquet(path: Path, rows: list[dict]) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path.with_suffix(".parquet"))
