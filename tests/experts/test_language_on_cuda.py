"""Language models on a GPU: sharded and quantized training, a model that a device map places, and what they generate."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from backbones.tiny_language import save_language, some_requests
from safetensors.torch import load_file
from test_completions import HELD_OUT, TRAIN, loss_of
from test_processes import FULL, KINDS, LORA, configuration

from twin_merging.backbones.causal_lm import CausalLMBackbone
from twin_merging.config import CausalLM
from twin_merging.experts.completions import causal_fine_tuning, causal_lora
from twin_merging.experts.processes import in_processes


def backbone_on(device: str, folder, **options) -> CausalLMBackbone:
    return CausalLMBackbone(CausalLM(pretrained=str(folder), **options), folder, torch.device(device), autocast=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_language(tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("kind", ["shards", "zero2", "zero3"])
@pytest.mark.parametrize(("alone", "options"), [(causal_lora, LORA), (causal_fine_tuning, FULL)], ids=["lora", "full"])
def test_a_launched_process_learns_what_this_one_does(base, cuda, tmp_path, kind, alone, options):
    if cuda == "cpu":
        pytest.skip("accelerate makes no shards on CPUs")
    if kind != "shards":
        pytest.importorskip("deepspeed", reason="needs deepspeed, which is not installed")
    backbone, (one, launched) = backbone_on(cuda, base), (tmp_path / name for name in ("one", "launched"))
    for folder in (one, launched):
        folder.mkdir()
    alone(backbone, "next", TRAIN[:40], HELD_OUT[:8], options, 0, one, tmp_path / "a")
    file = configuration(tmp_path, kind, processes=1, use_cpu=False)
    in_processes(
        backbone, "next", TRAIN[:40], HELD_OUT[:8], replace(options, accelerate=file), 0, launched, tmp_path / "b"
    )
    (weights,) = (path.name for path in one.glob("*.safetensors"))
    expected, found = load_file(one / weights), load_file(launched / weights)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-2, atol=2e-3)
    records = [json.loads((folder / "expert.json").read_text()) for folder in (one, launched)]
    assert records[1]["processes"]["kind"] == KINDS[kind]["distributed_type"]
    scores = [list(record["choice"]["scores"].values()) for record in records]
    assert scores[1] == pytest.approx(scores[0], rel=1e-2)


def test_adapters_of_a_quantized_model_learn(cuda, tmp_path):
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes, which is not installed")
    from peft import PeftModel

    base = save_language(tmp_path / "wide", width=64)  # a block of what is quantized together
    backbone, options = backbone_on(cuda, base), replace(LORA, quantize="nf4", checkpointing=True)
    causal_lora(backbone, "next", TRAIN, HELD_OUT, options, 0, tmp_path / "expert", tmp_path / "scratch")
    cpu = backbone_on("cpu", base)
    model = PeftModel.from_pretrained(cpu.load(), tmp_path / "expert")  # on the whole weights
    assert loss_of(model, cpu, HELD_OUT) < 0.8 * loss_of(cpu.load(), cpu, HELD_OUT)


@pytest.mark.parametrize("options", [{}, {"device_map": "auto"}], ids=["device", "device_map"])
def test_it_says_what_it_says_on_the_cpu(base, cuda, options):
    cpu, there = backbone_on("cpu", base), backbone_on(cuda, base, **options)
    expected = cpu.complete(cpu.load(), some_requests(), 4, "")
    model = there.load()
    assert {parameter.device.type for parameter in model.parameters()} == {cuda}
    assert there.complete(model, some_requests(), 4, "") == expected
