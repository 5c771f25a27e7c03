"""What a language model's stages write and read back: exams as JSON, and merged numbers that come in any order."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from backbones.tiny_language import backbone_of, save_language
from end_to_end import tiny_exams
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from twin_merging.evaluation.exams import Exam
from twin_merging.evaluation.helm.suite import HelmSuite
from twin_merging.parts import Parts
from twin_merging.pipeline.language.merging import Pieces
from twin_merging.pipeline.language.routing import fitting


def test_an_exam_comes_back_from_json_as_it_was(tmp_path: Path):
    alphabet = {letter: index for index, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    letters = Tokenizer(models.BPE(alphabet, []))
    letters.pre_tokenizer, letters.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters)
    suite = HelmSuite(tiny_exams.save_exams(tmp_path / "data"), tmp_path / "helm", tokenizer, context=None, shots=1)
    exams = [exam for name in tiny_exams.TASKS for exam in suite.exams(name)]
    assert {exam.questions[0].choices is None for exam in exams} == {True, False}
    for exam in exams:
        again = Exam.of(json.loads(json.dumps(exam.plain())))
        assert again == exam
        assert again.fingerprint() == exam.fingerprint()


def test_a_tensor_is_written_once_all_its_pieces_are_there(tmp_path: Path):
    tensors = {name: torch.randn(40, 50) for name in "abcdef"}
    pieces = [
        (name, start, tensors[name].flatten()[start : start + 99]) for name in tensors for start in range(0, 2000, 99)
    ]
    random.Random(0).shuffle(pieces)
    parts = Parts(tmp_path / "parts")
    taken = Pieces(parts, tensors)
    *most, last = pieces
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda piece: taken.write(*piece), most))
    assert parts.missing(tensors) == [last[0]]
    taken.write(*last)
    parts.join(tmp_path / "all.safetensors")
    found = load_file(tmp_path / "all.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_prompts_to_learn_routing_from_fit_into_the_context(tmp_path: Path):
    backbone = backbone_of(save_language(tmp_path / "base", context=96))
    assert fitting(backbone, "a short one") == "a short one"
    long = " ".join(f"word{number}" for number in range(200))
    cut = fitting(backbone, long)
    assert long.startswith(cut)
    assert 60 < len(backbone.tokenize([cut])[0]) < 96
