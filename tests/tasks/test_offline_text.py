from __future__ import annotations

import re
from pathlib import Path

import pytest

from twin_merging import config
from twin_merging.errors import UserError
from twin_merging.tasks.base import SPLITS, RawTask
from twin_merging.tasks.offline_text import OfflineText, _mend
from twin_merging.tasks.splits import check_disjoint, prepare

EXPECTED = {  # task: classes, rows of the source, rows that are left
    "rotten_tomatoes": (2, {"train": 8530}, {"train": 6142, "validation": 682, "test": 1706}),
    "bbc_topics": (5, {"train": 2225}, {"train": 1529, "validation": 170, "test": 425}),
    "newsgroups20": (20, {"train": 11293, "test": 7528}, {"train": 10136, "validation": 1126, "test": 7519}),
    "reuters_r8": (8, {"train": 5485, "test": 2189}, {"train": 4873, "validation": 542, "test": 2176}),
    "election_tweets": (2, {"train": 5722}, {"train": 4060, "validation": 451, "test": 1128}),
    "vader_tweets": (0, {"train": 4200}, {"train": 2938, "validation": 326, "test": 816}),
}


@pytest.fixture(scope="module")
def load(need_asset):
    loaded: dict[str, RawTask] = {}

    def get(name: str) -> RawTask:
        if name not in loaded:
            source = OfflineText(config.Tasks(), config.Paths())
            for asset in source.assets(name):
                need_asset(asset)
            loaded[name] = source.load(name)
        return loaded[name]

    return get


def test_all_tasks_are_known():
    assert OfflineText(config.Tasks(), config.Paths()).known() == tuple(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_task_has_its_rows_and_disjoint_splits(load, name: str):
    classes, source_rows, used = EXPECTED[name]
    raw = load(name)
    assert len(raw.class_names) == classes
    assert {split: len(rows) for split, rows in raw.splits.items()} == source_rows
    assert all(re.fullmatch("[a-z][a-z0-9_]*", class_name) for class_name in raw.class_names)
    task = prepare(raw, config.Rows(), None, 0)
    assert {split: len(task.splits[split]) for split in SPLITS} == used
    assert task.metric == ("accuracy" if classes else "pearson")
    check_disjoint(task)
    if classes:
        for split in SPLITS:
            assert set(task.splits[split].labels) == set(range(classes))


@pytest.mark.parametrize("name", EXPECTED)
def test_texts_have_no_encoding_errors(load, name: str):
    for split in load(name).splits.values():
        for (text,) in split.texts:
            assert not re.search("[\x00-\x1f\x7f-\x9f\ufffd]|Â£|&#[0-9]+ ?;|&amp;", text), text


def test_newsgroups_and_reuters_keep_their_official_test(load):
    for name in ("newsgroups20", "reuters_r8"):
        raw = load(name)
        task = prepare(raw, config.Rows(), None, 0)
        assert set(task.splits["test"].texts) <= set(raw.splits["test"].texts)
        assert set(task.splits["validation"].texts) <= set(raw.splits["train"].texts)


def test_tweets_do_not_name_their_author(load):
    texts = [text for (text,) in load("election_tweets").splits["train"].texts]
    assert not [text for text in texts if "https://" in text or re.search("@(?!user)[A-Za-z]", text)]


def test_labels_say_what_they_should(load):
    """Words that only one class would use: guards against a shifted label order."""
    hints = {
        "reuters_r8": {"grain": "grain", "deficit": "trade", "crude oil": "crude", "cts vs": "earnings"},
        "bbc_topics": {"striker": "sports", "the box office": "entertainment", "software": "tech"},
        "newsgroups20": {"goalie": "rec_sport_hockey", "motif": "comp_windows_x"},
        "rotten_tomatoes": {"unfunny": "negative", "wonderfully": "positive"},
        "election_tweets": {"crooked hillary": "donald_trump"},
    }
    for name, words in hints.items():
        raw = load(name)
        train = raw.splits["train"]
        for word, class_name in words.items():
            labels = [
                raw.class_names[y] for (text,), y in zip(train.texts, train.labels, strict=True) if word in text.lower()
            ]
            assert max(set(labels), key=labels.count) == class_name, (name, word)
    train = load("vader_tweets").splits["train"]
    loved = [y for (text,), y in zip(train.texts, train.labels, strict=True) if "love" in text.lower()]
    assert sum(loved) / len(loved) > 1.5


def test_identity_is_plain_and_pins_the_asset():
    source = OfflineText(config.Tasks(), config.Paths())
    assert source.identity("vader_tweets")["sha256"].startswith("5d7c06e0")
    assert source.identity("newsgroups20") != source.identity("reuters_r8")


@pytest.mark.parametrize("method", ["load", "identity", "assets"])
def test_an_unknown_task_names_the_nearest(method: str):
    with pytest.raises(UserError) as raised:
        getattr(OfflineText(config.Tasks(), config.Paths()), method)("newsgroup20")
    assert raised.value.nearest == "newsgroups20"


@pytest.mark.parametrize(
    ("broken", "whole"),
    [
        ("it\x92s \x96 good\x85", "it’s – good…"),
        ("val kilmer&#8217 ; s two", "val kilmer’ s two"),
        ("caf&#233;", "café"),
        ("a Â£5m deal", "a £5m deal"),
        (" two \n lines", "two lines"),
        ("münch, Â and R&B; s&m", "münch, Â and R&B; s&m"),
    ],
)
def test_only_clear_encoding_errors_are_mended(broken: str, whole: str):
    assert _mend(broken) == whole


def test_the_configuration_names_every_task():
    import yaml

    path = Path(__file__).parents[2] / "configs/tasks/offline_text.yaml"
    assert tuple(yaml.safe_load(path.read_text())["names"]) == tuple(EXPECTED)
