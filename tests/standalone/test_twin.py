"""``merge_method=twin``: what is written becomes a model that answers each example under its own merged weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from merge_models import CLASSES, save, state, task_arithmetic
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from twin_merging.checkpoints import Checkpoint
from twin_merging.config import MlpRouter as RouterOptions
from twin_merging.dynamic.model import TwinMergedModel
from twin_merging.errors import UserError
from twin_merging.routers.mlp import MlpRouter
from twin_merging.routers.tfidf import TfidfRouter
from twin_merging.sparsifiers.stored import read_back
from twin_merging.sparsifiers.svd import Factors
from twin_merging.standalone import twin
from twin_merging.standalone.cli import main

IDS = torch.tensor([[5, 9, 3, 44, 21], [1, 2, 3, 4, 5], [7, 7, 1, 0, 2]])
WEIGHTS = torch.tensor([[1.0, 0.0], [0.25, 0.75], [0.5, 0.5]])


@pytest.fixture
def given(tmp_path) -> list[str]:
    for seed, name in enumerate(["base", "e1", "e2"]):
        save(tmp_path / name, "bert", seed)
    return [f"base={tmp_path / 'base'}", f"experts=[{tmp_path / 'e1'},{tmp_path / 'e2'}]", "merge_method=twin"]


def states(tmp_path: Path) -> tuple[dict, list[dict]]:
    return state(tmp_path / "base"), [state(tmp_path / name) for name in ("e1", "e2")]


@torch.inference_mode()
def answers(weights: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    model = CLASSES["bert"]().eval()
    model.load_state_dict(weights)
    return model(input_ids=ids).logits


@pytest.mark.parametrize("whole", [["sparsifier=none"], ["sparsifier=magnitude", "sparsifier.fraction=1"]])
@torch.inference_mode()
def test_whole_knowledge_mixes_the_experts_themselves(tmp_path, given, whole):
    """Without truncation θ*(x) = Σ w_t θ_t for weights that sum to 1, whatever the shared expert."""
    assert main([*given, *whole, "merge_method.shared.scaling=0.4", f"out={tmp_path / 'out'}"]) == 0
    model = TwinMergedModel.from_pretrained(tmp_path / "out")
    found = model(input_ids=IDS, weights=WEIGHTS).logits
    _, experts = states(tmp_path)
    for row, weights in enumerate(WEIGHTS):
        mixed = {name: weights[0] * experts[0][name] + weights[1] * experts[1][name] for name in experts[0]}
        torch.testing.assert_close(found[row : row + 1], answers(mixed, IDS[row : row + 1]), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_factors_are_the_best_of_their_rank(tmp_path, given):
    assert main([*given, "sparsifier.rank=2", "merge_method.shared.scaling=0.4", f"out={tmp_path / 'out'}"]) == 0
    base, experts = states(tmp_path)
    shared = task_arithmetic(base, experts, 0.4)
    for name, tensor in state(tmp_path / "out/shared").items():
        torch.testing.assert_close(tensor, shared[name], rtol=1e-5, atol=1e-6)

    def cut(name: str, delta: torch.Tensor) -> torch.Tensor:
        if delta.dim() != 2:
            return delta
        U, S, Vt = torch.linalg.svd(delta.double(), full_matrices=False)
        return ((U[:, :2] * S[:2]) @ Vt[:2]).float()

    model = TwinMergedModel.from_pretrained(tmp_path / "out")
    found = model(input_ids=IDS, weights=WEIGHTS).logits
    for row, weights in enumerate(WEIGHTS):
        mixed = {
            name: shared[name] + sum(w * cut(name, expert[name] - shared[name]) for w, expert in zip(weights, experts, strict=True))
            for name in shared
        }  # fmt: skip
        torch.testing.assert_close(found[row : row + 1], answers(mixed, IDS[row : row + 1]), rtol=1e-3, atol=1e-4)
    alone = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out/shared").eval()
    torch.testing.assert_close(model(input_ids=IDS).logits, alone(input_ids=IDS).logits, rtol=1e-4, atol=1e-5)


def test_what_is_written(tmp_path, given):
    assert (
        main(
            [
                *given,
                "merge_method@merge_method.shared=weight_averaging",
                "sparsifier.rank=1",
                f"out={tmp_path / 'out'}",
            ]
        )
        == 0
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "shared", "exclusive.safetensors", "twin.json", "README.md"
    }  # fmt: skip
    record = json.loads((tmp_path / "out/twin.json").read_text())
    assert record["experts"] == ["e1", "e2"]
    assert record["merge_method"]["shared"]["name"] == "weight_averaging"
    assert record["sparsifier"]["rank"] == 1
    assert record["bytes"] == {
        "shared": (tmp_path / "out/shared/model.safetensors").stat().st_size,
        "exclusive.safetensors": (tmp_path / "out/exclusive.safetensors").stat().st_size,
    }
    assert record["bytes"]["exclusive.safetensors"] < record["bytes"]["shared"]


def test_the_cards_example_runs(tmp_path, given):
    assert main([*given, f"out={tmp_path / 'out'}"]) == 0
    card = (tmp_path / "out/README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace("FOLDER", repr(str(tmp_path / "out")))
    names: dict = {}
    exec(code.replace("INPUT_IDS", "torch.tensor([[5, 9, 3]])"), names)
    torch.testing.assert_close(
        names["output"].logits, answers(states(tmp_path)[1][0], torch.tensor([[5, 9, 3]])), rtol=1e-3, atol=1e-4
    )  # rank 16 is whole here, and the example's weights are the first expert's


@pytest.mark.parametrize("kind", ["mlp", "tfidf"])
@pytest.mark.parametrize("outputs", [2, 3])
def test_a_router_is_put_beside_it_if_it_routes_to_these_experts(tmp_path, given, capsys, outputs, kind):
    router = {
        "mlp": MlpRouter(RouterOptions(), 12, outputs),
        "tfidf": TfidfRouter(True, torch.ones(50), torch.randn(50, outputs), torch.zeros(outputs)),
    }[kind]
    save_file(router.state_dict(), tmp_path / "router.safetensors")
    code = main([*given, f"router={tmp_path / 'router.safetensors'}", f"out={tmp_path / 'out'}"])
    if outputs == 2:
        assert code == 0
        assert (tmp_path / "out/router.safetensors").read_bytes() == (tmp_path / "router.safetensors").read_bytes()
        weights = TwinMergedModel.from_pretrained(tmp_path / "out").route(input_ids=IDS)
        read = {"features": torch.zeros(3, 12)} if kind == "mlp" else {"ids": IDS}
        assert weights.shape == router.weights(**read).shape
        assert kind == "mlp" or torch.equal(weights, router.weights(**read))
    else:
        assert code == 2
        assert "router: this router does not route to these experts" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_a_router_without_a_twin_or_a_file_is_refused(tmp_path, given, capsys):
    assert main([*given[:2], "router=x", f"out={tmp_path / 'out'}"]) == 2
    assert "only a twin has a router" in capsys.readouterr().err
    assert main([*given, "router=missing.safetensors", f"out={tmp_path / 'out'}"]) == 2
    assert "router: no such file" in capsys.readouterr().err


@pytest.mark.parametrize(("sparsifier", "budget"), [("svd", 24_000), ("magnitude", 16_000)])
def test_a_budget_is_bytes_on_disk_of_all_matrices_together(tmp_path, given, sparsifier, budget):
    chosen = [f"sparsifier={sparsifier}", f"sparsifier.budget={budget}"]
    assert main([*given, *chosen, f"out={tmp_path / 'out'}"]) == 0
    assert 0.8 * budget < (tmp_path / "out" / twin.EXCLUSIVE).stat().st_size <= budget
    assert not list((tmp_path / "out").glob("*.parts"))
    if sparsifier == "svd":  # a rank for all matrices that takes as much leaves a larger error
        ranks = {
            factors.S.shape[1]
            for factors in read_back(Checkpoint(tmp_path / "out" / twin.EXCLUSIVE)).values()
            if isinstance(factors, Factors)
        }
        assert len(ranks) > 1


def test_a_budget_too_small_is_refused_before_anything_is_written(tmp_path, given, capsys):
    assert main([*given, "sparsifier.budget=100", f"out={tmp_path / 'out'}"]) == 2
    message = capsys.readouterr().err
    assert "sparsifier.budget: what is kept whole does not fit" in message
    assert not list(tmp_path.glob("out*"))
    smallest = message.split("at least ")[1].split()[0]
    assert main([*given, f"sparsifier.budget={smallest}", f"out={tmp_path / 'out'}"]) == 0


def test_compression_goes_on_with_the_parameters_that_are_done(tmp_path, given, monkeypatch):
    added = twin.Parts.add
    done: list[str] = []

    def add(parts, name, tensors):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(name)
        added(parts, name, tensors)

    arguments = [*given, "sparsifier.rank=2"]
    assert main([*arguments, f"out={tmp_path / 'whole'}"]) == 0
    monkeypatch.setattr(twin.Parts, "add", add)
    assert main([*arguments, f"out={tmp_path / 'out'}"]) == 130
    first = list(done)
    assert len(first) == 5
    monkeypatch.setattr(twin.Parts, "add", lambda *given: (done.append(given[1]), added(*given)))
    assert main([*arguments, f"out={tmp_path / 'out'}"]) == 0
    assert sorted(done) == sorted(set(done)) == sorted(state(tmp_path / "base"))
    whole, resumed = ((tmp_path / name / twin.EXCLUSIVE).read_bytes() for name in ("whole", "out"))
    assert whole == resumed


@torch.inference_mode()
def test_language_models_with_tied_embeddings_answer_and_generate(tmp_path):
    for seed, name in enumerate(["base", "e1", "e2"]):
        save(tmp_path / name, "llama", seed)
    experts = f"experts=[{tmp_path / 'e1'},{tmp_path / 'e2'}]"
    assert main([f"base={tmp_path / 'base'}", experts, "merge_method=twin", f"out={tmp_path / 'out'}"]) == 0
    model, one_hot = TwinMergedModel.from_pretrained(tmp_path / "out"), torch.eye(2)[[1, 0, 1]]
    found = model(input_ids=IDS, weights=one_hot).logits
    tokens = model.generate(IDS, one_hot, max_new_tokens=4, do_sample=False)
    for row, expert in enumerate(["e2", "e1", "e2"]):
        alone = AutoModelForCausalLM.from_pretrained(tmp_path / expert).eval()
        torch.testing.assert_close(found[row : row + 1], alone(IDS[row : row + 1]).logits, rtol=1e-3, atol=1e-4)
        assert torch.equal(tokens[row], alone.generate(IDS[row : row + 1], max_new_tokens=4, do_sample=False)[0])


def test_a_folder_without_a_twin(tmp_path):
    with pytest.raises(UserError, match="no twin"):
        TwinMergedModel.from_pretrained(tmp_path)
