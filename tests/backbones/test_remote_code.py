"""Models whose code comes with their weights: refused without the user's word, and told apart by their code with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_language import save_language

from twin_merging.backbones.sources import CODE, HASHED, check_code, locate, patterns_of
from twin_merging.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of an architecture that transformers does not know."""
    place = save_language(tmp_path / "foreign")
    config = json.loads((place / "config.json").read_text())
    config |= {"model_type": "qwen", "auto_map": {"AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"}}
    (place / "config.json").write_text(json.dumps(config))
    (place / "modeling_qwen.py").write_text("x = 1\n")
    return place


def test_it_is_refused_with_the_key_that_allows_it(folder):
    with pytest.raises(UserError) as caught:
        check_code(folder)
    assert caught.value.key == "backbone.trust_remote_code"
    assert "qwen" in str(caught.value.found)
    assert "qwen2_5_14b" in str(caught.value.hint)


def test_an_architecture_that_is_known_needs_no_code(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    check_code(folder)
    check_code(save_language(folder.parent / "plain"))


def test_code_identifies_a_model_only_where_it_runs(folder, tmp_path):
    def identities() -> tuple[dict, dict]:
        plain, trusted = (
            locate(str(folder), None, tmp_path, patterns=patterns_of(trust)).identity for trust in (False, True)
        )
        return plain, trusted

    plain, trusted = identities()
    (folder / "modeling_qwen.py").write_text("x = 2\n")
    changed_plain, changed = identities()
    assert plain == changed_plain
    assert trusted != changed
    assert patterns_of(False) == HASHED
    assert set(patterns_of(True)) == {*HASHED, CODE}
