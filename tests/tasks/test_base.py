from __future__ import annotations

from pathlib import Path

import pytest

from twin_merging.tasks.base import Split, Task


def make_task(pair: bool = False, numbers: bool = False) -> Task:
    texts = [("tab\tand\nline", "  spaced ") if pair else ("tab\tand\nline",), ("é 😀 \u0000", "b")[: 1 + pair]]
    splits = {
        name: Split(list(texts), [0.1 + 0.2, -4.0] if numbers else [1, 0]) for name in ("train", "validation", "test")
    }
    return Task(
        name="demo",
        kind="regression" if numbers else "single_label",
        class_names=() if numbers else ("no", "yes"),
        label_range=(-4.0, 4.0) if numbers else None,
        metric="pearson" if numbers else "accuracy",
        splits=splits,
        provenance={"source": "made", "nested": {"a": [1, 2.5, None]}},
    )


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("numbers", [False, True])
def test_save_and_load_give_the_same_task(tmp_path: Path, pair: bool, numbers: bool):
    task = make_task(pair, numbers)
    task.save(tmp_path)
    loaded = Task.load(tmp_path)
    assert loaded == task
    assert {type(label) for label in loaded.splits["train"].labels} == {float if numbers else int}
    assert loaded.fingerprint("train") == task.fingerprint("train")
    assert (loaded.num_labels, loaded.is_pair) == (1 if numbers else 2, pair)


@pytest.mark.parametrize(
    "other",
    [
        Split([("a", "b")], [0]),
        Split([("ab",)], [0]),
        Split([("a",)], [1]),
        Split([("a",), ("a",)], [0, 0]),
        Split([("A",)], [0]),
    ],
)
def test_fingerprint_tells_contents_apart(other: Split):
    assert Split([("a",)], [0]).fingerprint() == Split([("a",)], [0]).fingerprint() != other.fingerprint()


def test_fingerprint_depends_on_the_order():
    rows = Split([("a",), ("b",)], [0, 1])
    assert rows.fingerprint() != rows.take([1, 0]).fingerprint()
