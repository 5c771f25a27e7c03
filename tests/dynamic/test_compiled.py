"""A twin under torch.compile, inference mode and autocast: the same numbers, and each call under its own weights."""

from __future__ import annotations

import copy

import pytest
import torch
from test_backbones import VISION
from test_fallback import Positions
from test_model import B, T, batch, encoder_of, random_exclusive, random_weights
from transformers import AutoModel

from twin_merging.dynamic.model import TwinMergedModel


@pytest.fixture
def twin() -> TwinMergedModel:
    encoder = encoder_of("bert", torch.float32)
    return TwinMergedModel(encoder, random_exclusive(encoder, "mixed"))


@pytest.fixture(autouse=True)
def forget_what_was_compiled():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def several_weights() -> list[torch.Tensor | None]:
    """Soft ones, others of the same shape, an expert each, the same for all, and none."""
    soft = random_weights(torch.float32)
    return [soft, soft.flip(0).roll(1, 1), torch.eye(T)[[0, 1, 0, 2]], torch.eye(T)[[1] * B], None, soft]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_compiled_it_answers_each_call_under_its_own_weights(twin, mode):
    ids, mask = batch()
    compiled = torch.compile(twin, backend="eager")
    with mode():
        expected = [twin(input_ids=ids, attention_mask=mask, weights=w).last_hidden_state for w in several_weights()]
        for weights, output in zip(several_weights(), expected, strict=True):
            found = compiled(input_ids=ids, attention_mask=mask, weights=weights).last_hidden_state
            torch.testing.assert_close(found, output, rtol=0, atol=1e-6)
    assert (expected[0] - expected[1]).abs().max() > 0.01


@torch.no_grad()
def test_compiled_it_breaks_off_only_where_the_weights_are_looked_at(twin):
    ids, mask = batch()
    twin(input_ids=ids, attention_mask=mask, weights=random_weights(torch.float32))  # the first batch is not compiled
    found = torch._dynamo.explain(twin)(input_ids=ids, attention_mask=mask, weights=random_weights(torch.float32))
    assert {reason.user_stack[-1].filename.rpartition("/")[2] for reason in found.break_reasons} == {"mixture.py"}
    assert found.graph_break_count <= 2


@torch.no_grad()
def test_a_compiled_layer_gives_the_same_numbers_also_where_kernels_are_generated():
    # the layer's products in place and into parts of tensors have to survive functionalization
    module = torch.nn.Sequential(torch.nn.Linear(6, 5)).eval()
    twin = TwinMergedModel(module, random_exclusive(module, "factors"))
    x = torch.randn(B, 3, 6)
    compiled = torch.compile(twin, backend="aot_eager")
    for weights in several_weights():
        torch.testing.assert_close(compiled(x, weights=weights), twin(x, weights=weights), rtol=0, atol=1e-6)


@torch.no_grad()
def test_compiled_a_model_without_a_routed_form_runs_in_groups():
    model = Positions("matrix").eval()
    twin, ids = TwinMergedModel(copy.deepcopy(model), random_exclusive(model, "factors")), torch.randint(40, (B, 6))
    compiled = torch.compile(TwinMergedModel(model, random_exclusive(model, "factors")), backend="eager")
    for weights in several_weights():
        torch.testing.assert_close(compiled(ids, weights=weights)["y"], twin(ids, weights=weights)["y"])


def test_inference_mode_may_come_and_go(twin):
    ids, mask = batch()
    outputs = []
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad, torch.inference_mode):
        for weights in several_weights():
            with mode():
                outputs.append(twin(input_ids=ids, attention_mask=mask, weights=weights).last_hidden_state.clone())
    count = len(several_weights())
    for place, output in enumerate(outputs[count:]):
        assert torch.equal(output, outputs[place % count])


@torch.no_grad()
def test_compiled_code_may_ask_for_the_dtype_of_a_weight():
    model = AutoModel.from_config(VISION["clip"]).eval()  # which casts images to that of its patches' weight
    twin = TwinMergedModel(model, random_exclusive(model, "dense"))
    images, compiled = torch.randn(B, 3, 8, 8), torch.compile(twin, backend="eager")
    for weights in several_weights()[:3]:
        expected = twin(pixel_values=images, weights=weights).last_hidden_state
        torch.testing.assert_close(compiled(pixel_values=images, weights=weights).last_hidden_state, expected)
    assert not twin._whole.grouped


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
@torch.no_grad()
def test_autocast_is_as_near_as_the_merged_model_is(kind):
    encoder, (ids, mask), weights = encoder_of(kind, torch.float32), batch(), random_weights(torch.float32)
    twin, real = TwinMergedModel(copy.deepcopy(encoder), random_exclusive(encoder, "mixed")), mask.bool()

    def one_by_one() -> torch.Tensor:
        outputs = []
        for row, w in enumerate(weights):
            encoder.load_state_dict(twin.merge_for(w))
            outputs.append(encoder(ids[row : row + 1], attention_mask=mask[row : row + 1]).last_hidden_state)
        return torch.cat(outputs).float()[real]

    exact = one_by_one()
    with torch.autocast("cpu", torch.bfloat16):
        usual = (one_by_one() - exact).norm()
        found = twin(input_ids=ids, attention_mask=mask, weights=weights).last_hidden_state
        alike = twin(input_ids=ids, attention_mask=mask, weights=weights[:1]).last_hidden_state
    assert 0 < (found.float()[real] - exact).norm() < 2 * usual
    torch.testing.assert_close(alike[0].float(), found[0].float(), rtol=0, atol=0.1)
    after = twin(input_ids=ids, attention_mask=mask, weights=weights).last_hidden_state[real]
    torch.testing.assert_close(after, exact, rtol=0, atol=1e-5)
