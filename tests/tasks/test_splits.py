from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest

from twin_merging.config import Rows
from twin_merging.errors import UserError
from twin_merging.tasks.base import SPLITS, RawTask, Split
from twin_merging.tasks.splits import check_disjoint, normalise, prepare


def make_raw(splits: dict[str, Split], numbers: bool = False, columns: int = 1) -> RawTask:
    return RawTask(
        name="demo",
        class_names=() if numbers else ("no", "yes"),
        label_range=(0.0, 5.0) if numbers else None,
        metric="pearson" if numbers else "accuracy",
        columns=columns,
        splits=splits,
        provenance={"source": "made", "licence": "none", "splits": {name: f"{name} file" for name in splits}},
    )


def rows(count: int, prefix: str = "text", ones: float = 0.5) -> Split:
    return Split([(f"{prefix} {i}",) for i in range(count)], [int(i < ones * count) for i in range(count)])


def contents(split: Split) -> set[tuple[str, ...]]:
    return set(split.texts)


def test_missing_splits_are_cut_from_train_and_nothing_is_lost():
    task = prepare(make_raw({"train": rows(100, ones=0.3)}), Rows(), None, 0)
    assert {name: len(task.splits[name]) for name in SPLITS} == {"train": 72, "validation": 8, "test": 20}
    assert set.union(*(contents(split) for split in task.splits.values())) == contents(rows(100))
    assert Counter(task.splits["test"].labels) == {0: 14, 1: 6}
    assert task.provenance["splits"] == {
        "train": "train file",
        "validation": "cut from train: train file",
        "test": "cut from train: train file",
    }
    assert task.provenance["rows"]["source"] == {"train": 100}
    assert task.provenance["fingerprints"] == {name: task.fingerprint(name) for name in SPLITS}


def test_official_test_stays_and_validation_never_comes_from_it():
    raw = make_raw({"train": rows(50), "test": rows(30, "held out")})
    task = prepare(raw, Rows(validation=10), None, 0)
    assert contents(task.splits["test"]) == contents(raw.splits["test"])
    assert contents(task.splits["validation"]) < contents(raw.splits["train"])
    assert len(task.splits["validation"]) == 10
    assert len(task.splits["train"]) == 40


@pytest.mark.parametrize(("most", "count"), [(None, 10), (20, 10), (10, 10), (3, 3)])
def test_validation_is_a_tenth_of_train_but_no_more_than_may_be_held_out(most: int | None, count: int):
    raw = make_raw({"train": rows(100), "test": rows(30, "held out")})
    assert len(prepare(raw, Rows(), None, 0, held_out=most).splits["validation"]) == count
    assert len(prepare(raw, Rows(validation=40), None, 0, held_out=most).splits["validation"]) == 40
    assert len(prepare(make_raw({"train": rows(100)}), Rows(), None, 0, held_out=1).splits["test"]) == 20


def test_the_labels_follow_their_texts():
    raw = make_raw({"train": rows(60, ones=0.4)})
    label_of = dict(zip(raw.splits["train"].texts, raw.splits["train"].labels, strict=True))
    for split in prepare(raw, Rows(train=20), None, 3).splits.values():
        assert [label_of[texts] for texts in split.texts] == split.labels


def test_a_seed_gives_the_same_splits_and_another_seed_others():
    raw = make_raw({"train": rows(100)})
    assert prepare(raw, Rows(), None, 1) == prepare(raw, Rows(), None, 1)
    assert prepare(raw, Rows(), None, 1).fingerprint("test") != prepare(raw, Rows(), None, 2).fingerprint("test")


def test_limit_takes_a_stratified_part_of_the_same_splits():
    raw = make_raw({"train": rows(400, ones=0.25)})
    whole, part = prepare(raw, Rows(), None, 0), prepare(raw, Rows(), 16, 0)
    for name in SPLITS:
        assert part.splits[name].texts == whole.splits[name].texts[:16]
        assert Counter(part.splits[name].labels) == {0: 12, 1: 4}


def test_every_prefix_is_stratified():
    labels = (
        prepare(make_raw({"train": rows(300, ones=0.2), "test": rows(10, "t")}), Rows(), None, 0).splits["train"].labels
    )
    for end in range(1, len(labels) + 1):
        assert abs(sum(labels[:end]) - 0.2 * end) <= 1


def test_a_cut_takes_at_most_half():
    task = prepare(make_raw({"train": rows(40), "test": rows(5, "t")}), Rows(validation=1000), None, 0)
    assert (len(task.splits["train"]), len(task.splits["validation"])) == (20, 20)


def test_repeats_and_contradictions_are_dropped_and_counted():
    train = Split(
        [
            ("Same  text",),
            ("same text",),
            ("both",),
            ("BOTH",),
            ("in test",),
            ("in validation",),
            ("ﬁne",),
            ("only train",),
        ],
        [1, 1, 0, 1, 1, 0, 0, 1],
    )
    validation = Split([("in validation",), ("in TEST ",), ("v",)], [0, 1, 1])
    test = Split([("In test",), ("both",), ("fine",), ("fine",)], [1, 0, 0, 0])
    task = prepare(make_raw({"train": train, "validation": validation, "test": test}), Rows(), None, 0)
    assert contents(task.splits["test"]) == {("In test",), ("fine",)}
    assert contents(task.splits["validation"]) == {("in validation",), ("v",)}
    assert contents(task.splits["train"]) == {("Same  text",), ("only train",)}
    assert task.provenance["rows"]["dropped"] == {
        "train": {"two labels": 2, "repeated": 1, "in another split": 3},
        "validation": {"two labels": 0, "repeated": 0, "in another split": 1},
        "test": {"two labels": 1, "repeated": 1, "in another split": 0},
    }


def test_a_pair_is_compared_in_its_order():
    pairs = [("a", "b"), ("b", "a"), ("ab", "c"), ("a", "bc"), ("A", " b")]
    raw = make_raw({"train": Split(pairs, [0, 1, 0, 1, 0]), "test": Split([("t", "t")], [0])}, columns=2)
    assert prepare(raw, Rows(), None, 0).provenance["rows"]["dropped"]["train"]["repeated"] == 1
    assert normalise(("a b",)) != normalise(("a", "b"))


def test_regression_is_cut_too():
    raw = make_raw({"train": Split([(f"t{i}",) for i in range(50)], [i / 10 for i in range(50)])}, numbers=True)
    task = prepare(raw, Rows(), None, 0)
    assert {name: len(task.splits[name]) for name in SPLITS} == {"train": 36, "validation": 4, "test": 10}
    assert (task.kind, task.num_labels) == ("regression", 1)


@pytest.mark.parametrize("label", [2, -1, True, 1.0, "yes", None])
def test_a_label_outside_the_classes_is_refused(label: object):
    train = Split([("a",), ("b",)], [0, label])
    with pytest.raises(UserError) as raised:
        prepare(make_raw({"train": train}), Rows(), None, 0)
    assert raised.value.key == "task demo, train row 1"
    assert raised.value.found == repr(label)
    assert raised.value.expected == "0 (no), 1 (yes)"


@pytest.mark.parametrize("label", [math.nan, math.inf, 5.01, -0.01, "3", None, True])
def test_a_label_that_is_no_number_in_range_is_refused(label: object):
    raw = make_raw({"train": Split([("a",), ("b",)], [5.0, label])}, numbers=True)
    with pytest.raises(UserError, match=r"0\.0 to 5\.0") as raised:
        prepare(raw, Rows(), None, 0)
    assert raised.value.key == "task demo, train row 1"


@pytest.mark.parametrize("texts", [("",), (" \n",), (None,), ("a", "b"), ("\ud800",)])
def test_an_unusable_text_is_refused(texts: tuple):
    raw = make_raw({"train": rows(3), "test": Split([("fine",), texts], [0, 1])})
    with pytest.raises(UserError, match="task demo, test row 1"):
        prepare(raw, Rows(), None, 0)


def test_an_empty_split_says_where_its_rows_come_from():
    with pytest.raises(UserError) as raised:
        prepare(make_raw({"train": rows(3), "test": rows(0)}), Rows(), None, 0)
    assert raised.value.key == "task demo, test"
    assert "test file" in raised.value.hint


def test_a_split_that_is_emptied_by_cleaning_is_refused():
    with pytest.raises(UserError) as raised:
        prepare(make_raw({"train": rows(5), "validation": rows(5), "test": rows(5)}), Rows(), None, 0)
    assert raised.value.key == "task demo, train"
    with pytest.raises(UserError, match="task demo, validation") as raised:
        prepare(make_raw({"train": rows(1)}), Rows(), None, 0)
    assert raised.value.hint == "its rows come from: cut from train: train file"


def test_no_train_split_is_refused():
    with pytest.raises(UserError, match="no train split"):
        prepare(make_raw({"test": rows(5)}), Rows(), None, 0)


def test_overlap_is_found_by_content():
    task = prepare(make_raw({"train": rows(100)}), Rows(), None, 0)
    stolen = Split([("TEXT  " + task.splits["test"].texts[0][0].split()[1],)], [1])
    with pytest.raises(UserError, match="train and test") as raised:
        check_disjoint(replace(task, splits={**task.splits, "train": stolen}))
    assert raised.value.key == "task demo"
