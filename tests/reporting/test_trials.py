"""The best trial of a search: chosen on validation rows, told with its score on test rows."""

from __future__ import annotations

from synthetic import make_result

from twin_merging.reporting.methods import join_seeds
from twin_merging.reporting.tables import results_table
from twin_merging.reporting.trials import trial_note


def trial(label: str, validation: float | None, test: float, **more):
    scored = {"average_normalized": validation, "rows": 60}
    return make_result(label, average_normalized=test, validation=scored, **more)


def test_validation_decides_and_test_is_told():
    results = [trial("twin (svd rank 1)", 91.0, 99.0), trial("twin (svd rank 16)", 95.04, 94.0)]
    note = trial_note(join_seeds(results))
    assert note is not None
    for words in ("Best of 2 trial(s) on 60 validation rows", "twin (svd rank 16)", "95.0 there", "94.0 on test rows"):
        assert words in note
    assert note in results_table(results).notes


def test_without_a_search_there_is_no_note():
    assert trial_note(join_seeds([make_result()])) is None
    assert trial_note(join_seeds([trial("twin", None, 90.0)])) is None
