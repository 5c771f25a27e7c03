"""Text generation under weights that are decided on the prompt, and the rest of what a model can be asked."""

from __future__ import annotations

import pytest
import torch
from test_backbones import LANGUAGE, B, T, exclusive_of, language, merged, weights_of
from torch import nn

from twin_merging.config import Exact, MlpRouter
from twin_merging.dynamic.model import TwinMergedModel
from twin_merging.routers.mlp import MlpRouter as Router

NEW = 6


def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask of prompts of different lengths, padded on the left."""
    ids = torch.randint(2, 40, (B, 7), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[1, :3] = mask[2, :1] = 0
    ids[mask == 0] = 0
    return ids, mask


def alone(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor, **settings) -> torch.Tensor:
    """What a merged model goes on with from each prompt alone, without its padding."""
    real = ids[mask.bool()].unsqueeze(0)
    found = model.float().generate(real, attention_mask=torch.ones_like(real), pad_token_id=0, **settings)
    return found[:, real.shape[1] :]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", list(LANGUAGE))
def test_a_batch_goes_on_as_each_prompt_does_alone(kind, beams):
    model = language(kind, torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # so that logits are well apart
    deltas, weights, (ids, mask) = exclusive_of(model, True, 0.3), weights_of(dtype=torch.float32), prompts()
    settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "num_beams": beams, "do_sample": False}
    expected = torch.cat(
        [alone(merged(model, deltas, w), ids[row], mask[row], **settings) for row, w in enumerate(weights)]
    )
    twin = TwinMergedModel(model, deltas)
    found = twin.generate(ids, weights, attention_mask=mask, pad_token_id=0, **settings)[:, ids.shape[1] :]
    assert torch.equal(found, expected)
    without = twin.generate(ids, attention_mask=mask, pad_token_id=0, **settings)[:, ids.shape[1] :]
    assert not torch.equal(found, without)
    assert twin.mixture.weights is None


@pytest.mark.parametrize(("layer", "token"), [(-1, "mean"), (1, "mean"), (-1, "last"), (1, "last")])
@pytest.mark.parametrize("kind", list(LANGUAGE))
def test_a_batch_is_routed_as_each_prompt_is_alone(kind, layer, token):
    """Padding on the left moves no token: models count positions from a prompt's own first token."""
    model, (ids, mask) = language(kind, torch.float32), prompts()
    router = Router(MlpRouter(layer=layer, token=token), model.config.hidden_size, T)
    twin, seen = TwinMergedModel(model, exclusive_of(model, True, 0.3), router=router.eval()), []
    asked = router.weights
    router.weights = lambda states: seen.append(states) or asked(states)
    twin.generate(ids, attention_mask=mask, pad_token_id=0, max_new_tokens=1, do_sample=False)
    together = seen.pop()
    for row in range(B):
        twin.route(input_ids=ids[row][mask[row].bool()].unsqueeze(0))
        torch.testing.assert_close(together[row], seen.pop()[0], rtol=1e-4, atol=1e-5)


def test_sampled_sequences_of_a_prompt_all_have_its_weights():
    model = language("llama", torch.float32)
    deltas, (ids, mask) = exclusive_of(model, True, 0.3), prompts()
    one_hot, seen = torch.eye(T)[torch.tensor([0, 1, 2, 0])], []
    twin = TwinMergedModel(model, deltas)
    twin.encoder.register_forward_pre_hook(lambda *_: seen.append(twin.mixture.weights))
    found = twin.generate(
        ids, one_hot, attention_mask=mask, pad_token_id=0, max_new_tokens=3, do_sample=True, num_return_sequences=2
    )
    assert len(found) == 2 * B
    assert torch.equal(seen[-1], one_hot.repeat_interleave(2, 0))


@pytest.fixture
def routed() -> TwinMergedModel:
    torch.manual_seed(1)
    model = language("llama", torch.float32)
    router = Router(MlpRouter(), 16, T).eval()
    return TwinMergedModel(model, exclusive_of(model, True, 0.3), router=router)


def test_the_router_reads_the_mean_of_the_shared_experts_states_of_real_tokens(routed):
    ids, mask = prompts()
    found = routed.route(input_ids=ids, attention_mask=mask)
    with torch.no_grad():
        for row in range(B):
            real = ids[row][mask[row].bool()].unsqueeze(0)
            states = routed.encoder(real, output_hidden_states=True).hidden_states[-1]
            torch.testing.assert_close(
                found[row : row + 1], routed.router.weights(states.mean(1)), rtol=1e-4, atol=1e-5
            )
    torch.testing.assert_close(found.sum(1), torch.ones(B))


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_router_of_the_last_token_reads_the_last_real_one(routed, side):
    routed.router = Router.of_state(Router(MlpRouter(token="last", layer=1), 16, T).state_dict())
    assert routed.router.token == "last"
    ids, mask = prompts()
    rows = [ids[row][mask[row].bool()] for row in range(B)]
    assert len({len(row) for row in rows}) > 1
    padded = torch.zeros_like(ids), torch.zeros_like(mask)
    for row, real in enumerate(rows):
        place = slice(0, len(real)) if side == "right" else slice(ids.shape[1] - len(real), None)
        padded[0][row, place], padded[1][row, place] = real, 1
    positions = (padded[1].cumsum(1) - 1).clamp(min=0)
    found = routed.route(input_ids=padded[0], attention_mask=padded[1], position_ids=positions)
    for row, real in enumerate(rows):
        state = routed.encoder(real.unsqueeze(0), output_hidden_states=True).hidden_states[1][:, -1]
        torch.testing.assert_close(found[row], routed.router.weights(state)[0], rtol=1e-4, atol=1e-5)


def test_without_weights_generation_asks_the_router(routed):
    ids, mask = prompts()
    settings = {"attention_mask": mask, "max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    weights = routed.route(input_ids=ids, attention_mask=mask)
    assert torch.equal(routed.generate(ids, **settings), routed.generate(ids, weights, **settings))


@torch.no_grad()
def test_merge_for_gives_the_plain_model_of_some_weights():
    model = language("gpt2")
    deltas, ids, weights = exclusive_of(model, True), torch.randint(2, 40, (1, 6)), weights_of(rows=1)
    twin, plain = TwinMergedModel(model, deltas), language("gpt2")
    plain.load_state_dict(twin.merge_for(weights[0]))
    torch.testing.assert_close(plain(ids).logits, twin(input_ids=ids, weights=weights).logits, rtol=0, atol=1e-10)
    plain.load_state_dict(twin.merge_for(torch.zeros(T)))
    torch.testing.assert_close(plain(ids).logits, twin(input_ids=ids).logits, rtol=0, atol=1e-12)


@torch.no_grad()
def test_few_experts_are_an_option_and_what_they_leave_out_is_reported():
    ids, weights = torch.randint(2, 40, (B, 6)), weights_of()
    deltas = exclusive_of(language("llama"), True)
    twin = TwinMergedModel(language("llama"), deltas, Exact(top_k=1))
    found = twin(input_ids=ids, weights=weights).logits
    largest = torch.zeros_like(weights).scatter(1, weights.argmax(1, keepdim=True), weights.amax(1, keepdim=True))
    exact = TwinMergedModel(language("llama"), deltas)(input_ids=ids, weights=largest).logits
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-10)
    assert twin.mixture.dropped == pytest.approx(float((weights - largest).sum(1).max()))


def test_explain_names_every_matrix_and_its_plan():
    twin = TwinMergedModel(
        language("llama", torch.float32), exclusive_of(language("llama", torch.float32), True), Exact(plan="factored")
    )
    batch = {"input_ids": torch.randint(2, 40, (B, 6)), "weights": weights_of(dtype=torch.float32)}
    twin(**batch, start=1)  # after which the first block is the last to be planned
    layers = twin.explain(**batch)
    assert layers[0].layer == "LlamaForCausalLM.model.layers.0.self_attn.q_proj"
    assert twin.explain(**batch) == layers
    assert {layer.plan for layer in layers} == {"factored"}
    assert len(layers) == 2 * 7 + 1
    assert "LlamaForCausalLM.model.layers.1.mlp.down_proj" in {layer.layer for layer in layers}
    assert all(layer.ratio > 1 for layer in layers)


def test_it_moves_and_casts_as_modules_do():
    model = language("gpt2", torch.float32)
    twin = TwinMergedModel(model, exclusive_of(model, True)).double()
    ids, weights = torch.randint(2, 40, (B, 6)), weights_of()
    with torch.no_grad():
        assert twin(input_ids=ids, weights=weights).logits.dtype == torch.float64
    assert not any(parameter.requires_grad for parameter in twin.parameters())


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("kind", list(LANGUAGE))
@torch.no_grad()
def test_below_the_first_block_the_shared_expert_answers(kind, start):
    deltas, ids, weights = exclusive_of(language(kind), True), torch.randint(2, 40, (B, 6)), weights_of()
    inner = "transformer.h." if kind == "gpt2" else "model.layers."
    last = ("transformer.ln_f.", "model.norm.", "lm_head.")

    def is_above(name: str) -> bool:
        return name.startswith(last) or (
            name.startswith(inner) and int(name.removeprefix(inner).split(".")[0]) >= start
        )

    upper = {name: delta for name, delta in deltas.items() if is_above(name)}
    if kind != "qwen2":  # whose output is not tied to its input
        upper["lm_head.weight"] = deltas["transformer.wte.weight" if kind == "gpt2" else "model.embed_tokens.weight"]
    untied = language(kind)
    untied.lm_head.weight = nn.Parameter(untied.lm_head.weight.clone())
    expected = TwinMergedModel(untied, upper)(input_ids=ids, weights=weights).logits
    twin = TwinMergedModel(language(kind), deltas)
    found = twin(input_ids=ids, weights=weights, start=start).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert (found - twin(input_ids=ids, weights=weights).logits).abs().max() > 1e-3
    assert twin.mixture.weights is None


@pytest.mark.parametrize("layer", [-1, 0, 1])
def test_an_early_router_answers_in_one_pass(layer):
    torch.manual_seed(1)
    model = language("llama", torch.float32)
    router = Router(MlpRouter(layer=layer), 16, T).eval()
    options = Exact(lower="shared")
    twin, passes = TwinMergedModel(model, exclusive_of(model, True, 0.3), options, router), []
    twin.encoder.model.layers[1].register_forward_pre_hook(lambda *_: passes.append(1))
    ids, mask = prompts()
    found = twin.answer(input_ids=ids, attention_mask=mask).logits
    assert len(passes) == (2 if layer < 0 else 1)
    weights = twin.route(input_ids=ids, attention_mask=mask)
    start = None if layer < 0 else layer
    expected = twin(input_ids=ids, attention_mask=mask, weights=weights, start=start).logits
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=1e-4, atol=1e-5)


def test_prompts_of_the_same_weights_are_generated_with_one_matrix_that_is_kept():
    model = language("llama", torch.float32)
    twin = TwinMergedModel(model, exclusive_of(model, True, 0.3), Exact(plan="grouped"))
    ids, mask = prompts()
    held, batches = [], []
    twin.encoder.register_forward_hook(
        lambda *_: held.append(twin.mixture.batch.held) or batches.append(twin.mixture.batch)
    )
    weights = torch.tensor([[0.2, *[0.8 / (T - 1)] * (T - 1)]])
    found = twin.generate(ids, weights.expand(len(ids), -1), attention_mask=mask, max_new_tokens=4, do_sample=False)
    assert held[0] > 0
    assert len(set(held)) == len(set(batches)) == 1  # made for the prompt, and kept
    plain = language("llama", torch.float32)
    plain.load_state_dict(twin.merge_for(weights[0]))
    assert torch.equal(found, plain.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False))
