from __future__ import annotations

import pickle

from twin_merging.errors import UserError, nearest, unknown


def test_the_message_names_key_found_expected_nearest_and_hint():
    error = UserError("not good", key="a.b", found=3, expected="at least 4", nearest="4", hint="try 4")
    lines = str(error).splitlines()
    assert lines[0] == "a.b: not good"
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["found", "expected", "nearest", "hint"]
    assert [line.split(":")[1].strip() for line in lines[1:]] == ["3", "at least 4", "4", "try 4"]


def test_what_is_not_known_is_not_shown():
    assert str(UserError("not good")) == "not good"
    assert str(UserError("not good", found=0)) == "not good\n  found:    0"


def test_it_survives_the_way_to_another_process():
    error = UserError("not good", key="a", found=[1], expected="x", nearest="y", hint="z")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_nearest_is_close_or_none():
    assert nearest("tis", ["ties", "twin", "dare"]) == "ties"
    assert nearest("qqq", ["ties", "twin", "dare"]) is None


def test_unknown_lists_what_is_known():
    error = unknown("group.name", "twn", ["twin", "ties"])
    assert (error.key, error.found, error.expected, error.nearest) == ("group.name", "twn", "one of ties, twin", "twin")
