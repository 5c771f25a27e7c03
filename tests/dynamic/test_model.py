"""TwinMergedModel over real architectures against a loop that merges a model of its own for each example."""

from __future__ import annotations

import copy

import pytest
import torch
from oracles import dynamic as oracle
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    MPNetConfig,
    RobertaConfig,
)

from twin_merging.dynamic.model import TwinMergedModel
from twin_merging.sparsifiers.svd import decompose

SMALL = {
    "vocab_size": 40, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20,
    "max_position_embeddings": 24,
}  # fmt: skip
CONFIGS = {
    "bert": BertConfig(**SMALL),
    "roberta": RobertaConfig(**SMALL, pad_token_id=1),
    "electra": ElectraConfig(**SMALL, embedding_size=8),
    "distilbert": DistilBertConfig(
        vocab_size=40, dim=12, n_layers=2, n_heads=2, hidden_dim=20, max_position_embeddings=24
    ),
}
B, T, S = 4, 3, 7


def encoder_of(kind: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(len(kind))
    return AutoModel.from_config(CONFIGS[kind], attn_implementation="eager").to(dtype).eval()


def random_exclusive(encoder: nn.Module, kind: str) -> dict:
    """v_t of every parameter: factors of matrices, whole tensors, or either by turns."""
    generator = torch.Generator().manual_seed(11)
    deltas = {}
    for position, (name, parameter) in enumerate(encoder.named_parameters()):
        delta = 0.05 * torch.randn(T, *parameter.shape, generator=generator, dtype=torch.float64)
        delta = delta.to(parameter.dtype)
        factored = parameter.dim() == 2 and (kind == "factors" or (kind == "mixed" and position % 3 > 0))
        deltas[name] = decompose(delta, 3) if factored else delta
    return deltas


def batch(padded: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, (B, S)."""
    ids = torch.randint(3, 40, (B, S), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if padded:
        mask[1, 5:], mask[3, 2:] = 0, 0
        ids[mask == 0] = 1
    return ids, mask


def random_weights(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(B, T, generator=torch.Generator().manual_seed(2), dtype=torch.float64).softmax(-1).to(dtype)


@torch.no_grad()
def last_states(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor, **more) -> torch.Tensor:
    return model(input_ids=ids, attention_mask=mask, **more).last_hidden_state


def with_weights(encoder: nn.Module, state: dict) -> nn.Module:
    own = copy.deepcopy(encoder)
    own.load_state_dict(state)
    return own


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("kind", ["factors", "dense", "mixed"])
@pytest.mark.parametrize("architecture", list(CONFIGS))
def test_equals_a_model_of_its_own_for_each_example(architecture, kind, dtype, tolerance):
    encoder = encoder_of(architecture, dtype)
    exclusive, weights, (ids, mask) = random_exclusive(encoder, kind), random_weights(dtype), batch()
    slow = torch.cat(oracle.outputs(encoder, exclusive, weights, ids, mask))
    shared = last_states(encoder, ids, mask)
    fast = last_states(TwinMergedModel(encoder, exclusive), ids, mask, weights=weights)
    assert (slow - shared.double()).abs().max() > 0.01  # the experts matter
    torch.testing.assert_close(fast.double(), slow, rtol=0, atol=tolerance)


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_the_pooler_is_routed_too(architecture):
    encoder = encoder_of(architecture)
    exclusive, weights, (ids, mask) = random_exclusive(encoder, "mixed"), random_weights(), batch()
    wanted = []
    for example in range(B):
        state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
        for name, delta in exclusive.items():
            state[name] += torch.tensordot(weights[example], oracle.multiplied_out(delta), 1)
        one = slice(example, example + 1)
        with torch.no_grad():
            wanted.append(with_weights(encoder, state)(input_ids=ids[one], attention_mask=mask[one]).pooler_output)
    model = TwinMergedModel(encoder, exclusive)
    with torch.no_grad():
        fast = model(input_ids=ids, attention_mask=mask, weights=weights).pooler_output
    torch.testing.assert_close(fast, torch.cat(wanted), rtol=0, atol=1e-10)


@pytest.mark.parametrize("architecture", list(CONFIGS))
def test_an_example_does_not_depend_on_its_batch(architecture):
    encoder = encoder_of(architecture)
    model = TwinMergedModel(encoder, random_exclusive(encoder, "mixed"))
    weights, (ids, mask) = random_weights(), batch(padded=False)
    together = last_states(model, ids, mask, weights=weights)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(last_states(model, ids[order], mask[order], weights=weights[order]), together[order])
    torch.testing.assert_close(last_states(model, ids[:1], mask[:1], weights=weights[:1]), together[:1])


@pytest.fixture(params=["bert", "roberta", "electra", "distilbert"])
def experts(request):
    """An encoder, the state dicts of three experts, and of a shared expert that is none of them."""
    encoder = encoder_of(request.param)
    states = []
    for seed in range(T + 1):
        generator = torch.Generator().manual_seed(seed)
        noise = {
            name: 0.05 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
            for name, p in encoder.named_parameters()
        }
        states.append({name: tensor + noise.get(name, 0) for name, tensor in encoder.state_dict().items()})
    return encoder, states[:T], states[T]


def twin(encoder: nn.Module, states: list[dict], shared: dict, full_rank: bool) -> TwinMergedModel:
    exclusive = {}
    for name, parameter in encoder.named_parameters():
        delta = torch.stack([state[name] - shared[name] for state in states])
        exclusive[name] = decompose(delta, min(parameter.shape)) if full_rank and parameter.dim() == 2 else delta
    return TwinMergedModel(with_weights(encoder, shared), exclusive)


@pytest.mark.parametrize("other_shared", [False, True])
def test_untruncated_with_weights_that_sum_to_1_is_the_weighted_mean_whatever_is_shared(experts, other_shared):
    encoder, states, shared = experts
    shared = states[0] if other_shared else shared
    weights, (ids, mask) = random_weights(), batch()
    fast = last_states(twin(encoder, states, shared, full_rank=False), ids, mask, weights=weights)
    for example in range(B):
        mean = {
            name: sum(weights[example, t] * states[t][name] for t in range(T)) if tensor.is_floating_point() else tensor
            for name, tensor in shared.items()
        }
        one = slice(example, example + 1)
        expected = last_states(with_weights(encoder, mean), ids[one], mask[one])
        torch.testing.assert_close(fast[one], expected, rtol=0, atol=1e-10)


def test_one_hot_at_full_rank_is_the_expert_itself(experts):
    encoder, states, shared = experts
    model, (ids, mask) = twin(encoder, states, shared, full_rank=True), batch()
    for t in range(T):
        weights = torch.eye(T, dtype=torch.float64)[[t] * B]
        expected = last_states(with_weights(encoder, states[t]), ids, mask)
        torch.testing.assert_close(last_states(model, ids, mask, weights=weights), expected, rtol=0, atol=1e-7)


def test_no_weights_give_the_shared_expert_also_after_a_routed_batch(experts):
    encoder, states, shared = experts
    model, (ids, mask) = twin(encoder, states, shared, full_rank=True), batch()
    expected = last_states(with_weights(encoder, shared), ids, mask)
    assert torch.equal(last_states(model, ids, mask), expected)
    assert not torch.equal(last_states(model, ids, mask, weights=random_weights()), expected)
    assert torch.equal(last_states(model, ids, mask), expected)


def test_weights_are_forgotten_when_the_encoder_fails():
    encoder = encoder_of("bert")
    model = TwinMergedModel(encoder, random_exclusive(encoder, "dense"))
    with pytest.raises(ValueError, match="input_ids"):
        model(weights=random_weights())
    assert model.mixture.weights is None


def test_without_that_module_the_rest_is_routed():
    encoder = AutoModel.from_config(MPNetConfig(**SMALL), attn_implementation="eager").double().eval()
    exclusive, weights, (ids, mask) = random_exclusive(encoder, "mixed"), random_weights(), batch()
    del exclusive["encoder.relative_attention_bias.weight"]
    slow = torch.cat(oracle.outputs(encoder, exclusive, weights, ids, mask))
    fast = last_states(TwinMergedModel(encoder, exclusive), ids, mask, weights=weights)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-10)
