"""Several processes learn what one does, on CPUs: replicas. Shards need a GPU: test_language_on_cuda.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from backbones.tiny_language import backbone_of, save_language
from safetensors.torch import load_file
from test_completions import HELD_OUT, TRAIN

from twin_merging.config import CausalFineTuning, CausalLora
from twin_merging.errors import UserError
from twin_merging.experts import processes
from twin_merging.experts.completions import causal_fine_tuning, causal_lora
from twin_merging.experts.processes import in_processes
from twin_merging.ranks import count, is_first, is_spread

COMMON = {"epochs": 2, "lr": 2e-2, "batch_size": 8, "micro_batch": 2}
LORA = CausalLora(**COMMON, rank=4, alpha=8, targets=r".*\.(q_proj|up_proj)", dropout=0.0)
FULL = CausalFineTuning(**{**COMMON, "lr": 3e-3})
FSDP = {
    "fsdp_version": 2, "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "fsdp_state_dict_type": "FULL_STATE_DICT",
    "fsdp_reshard_after_forward": True, "fsdp_cpu_ram_efficient_loading": False,
}  # fmt: skip
KINDS = {
    "replicas": {"distributed_type": "MULTI_CPU"},
    "unnamed": {"distributed_type": "NO"},
    "shards": {"distributed_type": "FSDP", "fsdp_config": FSDP},
    "zero2": {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 2}},
    "zero3": {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 3}},
}


def configuration(folder: Path, kind: str, processes: int = 2, use_cpu: bool = True) -> str:
    """A file as `accelerate config` writes it."""
    file = folder / f"{kind}.yaml"
    more = {
        "num_processes": processes,
        "num_machines": 1,
        "machine_rank": 0,
        "use_cpu": use_cpu,
        "mixed_precision": "no",
    }
    file.write_text(json.dumps({"compute_environment": "LOCAL_MACHINE", "main_process_port": 0, **KINDS[kind], **more}))
    return str(file)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return backbone_of(save_language(tmp_path_factory.mktemp("llama")))


@pytest.mark.parametrize(("alone", "options"), [(causal_lora, LORA), (causal_fine_tuning, FULL)], ids=["lora", "full"])
@pytest.mark.parametrize("kind", ["replicas", "unnamed"])
def test_they_learn_what_one_process_learns(backbone, tmp_path, monkeypatch, kind, alone, options):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rows = TRAIN[:40]  # whole steps: a last one that is not is filled up with repeated rows where several share it
    one, many = (tmp_path / name for name in ("one", "many"))
    for folder in (one, many):
        folder.mkdir()
    alone(backbone, "next", rows, HELD_OUT[:8], options, 0, one, tmp_path / "a")
    options = type(options)(**{**vars(options), "accelerate": configuration(tmp_path, kind)})
    in_processes(backbone, "next", rows, HELD_OUT[:8], options, 0, many, tmp_path / "b")
    assert {path.name for path in many.iterdir()} == {path.name for path in one.iterdir()}
    (weights,) = (path.name for path in one.glob("*.safetensors"))
    expected, found = load_file(one / weights), load_file(many / weights)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)
    records = [json.loads((folder / "expert.json").read_text()) for folder in (one, many)]
    assert records[1]["processes"] == {"count": 2, "kind": "MULTI_CPU"}
    scores = [list(record["choice"]["scores"].values()) for record in records]
    torch.testing.assert_close(torch.tensor(scores[0]), torch.tensor(scores[1]), rtol=1e-3, atol=1e-3)


def test_ranks_that_a_cluster_sets_are_not_taken_for_ours(monkeypatch):
    for name, value in {"WORLD_SIZE": "4", "RANK": "3", "ACCELERATE_USE_FSDP": "true"}.items():
        monkeypatch.setenv(name, value)
    assert (count(), is_first(), is_spread()) == (1, True, False)
    monkeypatch.setenv("TWIN_PROCESSES", "1")
    assert (count(), is_first(), is_spread()) == (4, False, True)


def test_a_step_of_no_whole_micro_batches_is_refused_in_the_users_words(backbone, tmp_path, capfd):
    options = CausalLora(
        **{**COMMON, "micro_batch": 8}, targets=LORA.targets, accelerate=configuration(tmp_path, "replicas")
    )
    with pytest.raises(UserError) as caught:
        in_processes(backbone, "next", TRAIN, HELD_OUT, options, 0, tmp_path / "out", tmp_path / "b")
    assert caught.value.key == "finetune.accelerate"
    assert "a divisor of batch_size=8 / 2 processes" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("installed", "own", "says"),
    [
        (False, None, "not installed"), (True, "{", "cannot be read"), (True, '{"zero_optimization": {"stage": 3}}', "saved"),
        (True, '{"zero_optimization": {"stage": 2}}', None), (True, None, None),
        (True, '{"zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": true}}', None),
    ],
)  # fmt: skip
def test_deepspeed_that_could_not_save_is_refused(tmp_path, monkeypatch, installed, own, says):
    monkeypatch.setattr(processes, "find_spec", lambda _: object() if installed else None)
    options = {"zero_stage": 3}
    if own is not None:
        (tmp_path / "zero.json").write_text(own)
        options = {"deepspeed_config_file": str(tmp_path / "zero.json")}
    file = tmp_path / "file.yaml"
    file.write_text(json.dumps({"distributed_type": "DEEPSPEED", "num_processes": 2, "deepspeed_config": options}))
    if says is None:
        assert processes.settings_of(str(file), "cuda")["num_processes"] == 2
        return
    with pytest.raises(UserError, match=says) as raised:
        processes.settings_of(str(file), "cuda")
    assert raised.value.key == "finetune.accelerate"
