"""Architectures with a layer that is applied to no example's rows: a pass for each group of the same weights, exactly."""

from __future__ import annotations

import copy

import pytest
import torch
from test_model import SMALL, B, S, T, batch, random_exclusive
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    DebertaConfig,
    DebertaV2Config,
    MPNetConfig,
    PreTrainedConfig,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from twin_merging.config import Exact, MlpRouter
from twin_merging.dynamic.model import TwinMergedModel
from twin_merging.errors import UserError
from twin_merging.routers.mlp import MlpRouter as Router

RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
T5 = {
    "vocab_size": 40, "d_model": 12, "d_kv": 6, "d_ff": 20, "num_layers": 2, "num_heads": 2, "relative_attention_num_buckets": 8,
    "decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
CONFIGS: dict[str, PreTrainedConfig] = {
    "deberta v1": DebertaConfig(**SMALL, **RELATIVE),
    "deberta": DebertaV2Config(**SMALL, **RELATIVE, position_buckets=4, conv_kernel_size=3),
    "deberta v3": DebertaV2Config(
        **SMALL, **RELATIVE, position_buckets=4, share_att_key=True, norm_rel_ebd="layer_norm", position_biased_input=False
    ),
    "mpnet": MPNetConfig(**SMALL),
    "t5": T5Config(**T5),
}  # fmt: skip
SLOW = {
    "deberta v1": "DebertaModel.encoder (DebertaEncoder)", "deberta": "DebertaV2Model.encoder (DebertaV2Encoder)",
    "deberta v3": "DebertaV2Model.encoder (DebertaV2Encoder)", "mpnet": "MPNetModel.encoder (MPNetEncoder)",
    "t5": "T5EncoderModel.encoder (T5Stack)",
}  # fmt: skip
ALIKE = torch.tensor([0, 1, 0, 2])  # the first and the third example have the same weights


def encoder_of(kind: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    config = CONFIGS[kind]
    model = T5EncoderModel(config) if kind == "t5" else AutoModel.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def some_weights(dtype: torch.dtype = torch.float64, alike: torch.Tensor = ALIKE) -> torch.Tensor:
    drawn = torch.randn(B, T, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return drawn.softmax(-1)[alike].to(dtype)


@torch.no_grad()
def one_by_one(twin: TwinMergedModel, plain: nn.Module, weights: torch.Tensor, **inputs) -> list:
    """The plain model's output for each example, with the weights that ``merge_for`` gives for it."""
    outputs = []
    for row, w in enumerate(weights):
        own = copy.deepcopy(plain)
        own.load_state_dict(twin.merge_for(w))
        outputs.append(own(**{name: x[row : row + 1] for name, x in inputs.items()}))
    return outputs


@pytest.fixture(autouse=True)
def layer_norms_keep_float64(request, monkeypatch):
    """The first DeBERTa's would round to float32."""
    if "float64" in request.node.name:
        monkeypatch.setattr(torch.Tensor, "float", lambda x: x)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["float64", "float32"]
)
@pytest.mark.parametrize("knowledge", ["factors", "dense"])
@pytest.mark.parametrize("kind", list(CONFIGS))
@torch.no_grad()
def test_relative_positions(kind, knowledge, dtype, tolerance, caplog):
    encoder, (ids, mask), weights = encoder_of(kind, dtype), batch(), some_weights(dtype)
    twin = TwinMergedModel(copy.deepcopy(encoder), random_exclusive(encoder, knowledge))
    slow = one_by_one(twin, encoder, weights, input_ids=ids, attention_mask=mask)
    for _ in range(2):
        fast = twin(input_ids=ids, attention_mask=mask, weights=weights).last_hidden_state
        real = mask.bool()
        expected = torch.cat([output.last_hidden_state for output in slow])
        torch.testing.assert_close(fast[real], expected[real], rtol=0, atol=tolerance)
    assert (expected - encoder(ids, attention_mask=mask).last_hidden_state)[real].abs().max() > 0.01
    assert caplog.text.count(SLOW[kind]) == 1
    assert "which is slow" in caplog.text
    assert twin.mixture.weights is None


@pytest.mark.parametrize("kind", list(CONFIGS))
@torch.no_grad()
def test_as_many_examples_as_tokens_float64(kind):
    # positions of (S, S), or a matrix of as many rows, must not be taken for the examples
    encoder, weights = encoder_of(kind), some_weights()
    twin = TwinMergedModel(copy.deepcopy(encoder), random_exclusive(encoder, "factors"))
    ids = torch.randint(3, 40, (B, B))
    slow = one_by_one(twin, encoder, weights, input_ids=ids)
    fast = twin(input_ids=ids, weights=weights).last_hidden_state
    torch.testing.assert_close(fast, torch.cat([o.last_hidden_state for o in slow]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", list(CONFIGS))
@torch.no_grad()
def test_the_same_weights_for_all_take_one_pass_float64(kind):
    encoder, (ids, mask), passes = encoder_of(kind), batch(), []
    twin = TwinMergedModel(copy.deepcopy(encoder), random_exclusive(encoder, "factors"))
    weights = some_weights(alike=torch.zeros(B).long())
    slow = one_by_one(twin, encoder, weights, input_ids=ids, attention_mask=mask)
    blocks = next(module for module in twin.encoder.modules() if isinstance(module, nn.ModuleList))
    blocks[0].register_forward_pre_hook(lambda *_: passes.append(1))
    expected, real = torch.cat([output.last_hidden_state for output in slow]), mask.bool()
    for given in (weights, weights[:1]):
        fast = twin(input_ids=ids, attention_mask=mask, weights=given).last_hidden_state
        torch.testing.assert_close(fast[real], expected[real], rtol=0, atol=1e-10)
    assert len(passes) == 2


@pytest.mark.parametrize("kind", ["deberta", "mpnet"])
@torch.no_grad()
def test_half_precision_is_as_near_as_a_merged_model_is(kind):
    encoder, (ids, mask), weights = encoder_of(kind, torch.float32), batch(), some_weights(torch.float32)
    deltas = random_exclusive(encoder, "dense")
    inputs, real = {"input_ids": ids, "attention_mask": mask}, mask.bool()
    twin = TwinMergedModel(copy.deepcopy(encoder), deltas)
    exact, halves = (
        torch.cat([o.last_hidden_state for o in one_by_one(twin, copy.deepcopy(encoder).to(dtype), weights, **inputs)]).float()
        for dtype in (torch.float32, torch.bfloat16)
    )  # fmt: skip
    half = {name: delta.bfloat16() for name, delta in deltas.items()}
    fast = TwinMergedModel(encoder.bfloat16(), half)(**inputs, weights=weights.bfloat16()).last_hidden_state
    assert fast.dtype == torch.bfloat16
    assert (fast.float() - exact)[real].norm() < 2 * (halves - exact)[real].norm()


@pytest.mark.parametrize("kind", ["deberta", "deberta v1", "mpnet"])
@torch.no_grad()
def test_a_classifiers_head_and_loss_stay_in_one_batch_float64(kind):
    model = AutoModelForSequenceClassification.from_config(CONFIGS[kind], attn_implementation="eager").double().eval()
    (ids, mask), weights, labels = batch(), some_weights(), torch.tensor([0, 1, 1, 0])
    twin = TwinMergedModel(copy.deepcopy(model), random_exclusive(model, "factors"))
    slow = torch.cat([output.logits for output in one_by_one(twin, model, weights, input_ids=ids, attention_mask=mask)])
    fast = twin(input_ids=ids, attention_mask=mask, labels=labels, weights=weights)
    torch.testing.assert_close(fast.logits, slow, rtol=0, atol=1e-10)
    torch.testing.assert_close(fast.loss, F.cross_entropy(slow, labels), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["deberta", "mpnet"])
@pytest.mark.parametrize("start", [0, 1])
@torch.no_grad()
def test_blocks_from_one_on_float64(kind, start):
    encoder, (ids, mask), weights = encoder_of(kind), batch(), some_weights()
    deltas = random_exclusive(encoder, "dense")
    upper = {
        name: x
        for name, x in deltas.items()
        if any(f"encoder.layer.{n}." in name for n in range(start, 2))
        or ("conv" in name and start == 0)
        or "pooler" in name
    }
    expected = TwinMergedModel(copy.deepcopy(encoder), upper)(input_ids=ids, attention_mask=mask, weights=weights)
    found = TwinMergedModel(encoder, deltas)(input_ids=ids, attention_mask=mask, weights=weights, start=start)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=0, atol=1e-10)


@torch.no_grad()
def test_an_early_router_answers_in_two_passes():
    encoder, (ids, mask) = encoder_of("deberta", torch.float32), batch()
    router = Router(MlpRouter(layer=1), 12, T).eval()
    twin = TwinMergedModel(encoder, random_exclusive(encoder, "dense"), Exact(lower="shared"), router)
    found = twin.answer(input_ids=ids, attention_mask=mask).last_hidden_state
    weights = twin.route(input_ids=ids, attention_mask=mask)
    expected = twin(input_ids=ids, attention_mask=mask, weights=weights, start=1).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


class Positions(nn.Module):
    """An architecture that no list names: it adds a product of positions that all examples share."""

    def __init__(self, read: str):
        super().__init__()
        self.read, self.tokens, self.positions = read, nn.Embedding(40, 12), nn.Embedding(16, 12)
        self.product, self.out = nn.Linear(12, 12), nn.Linear(12, 5)

    def forward(self, input_ids, labels=None):
        x, count = self.tokens(input_ids), input_ids.shape[1]
        if self.read == "ids":
            x = x + self.positions(torch.arange(count))
        elif self.read == "matrix":
            x = x + self.positions.weight[:count]
        elif self.read == "square":
            distances = (torch.arange(count) - torch.arange(count).unsqueeze(1)).abs()
            x = x + self.positions(distances).sum(1)
        elif self.read == "linear":
            x = F.linear(x, self.product.weight, self.product.bias)
        else:
            x = x.transpose(0, 1)
            return {"y": self.out(self.product(x).transpose(0, 1))}
        y = self.out(self.product(x))
        return {"y": y, "loss": None if labels is None else F.cross_entropy(y[:, 0], labels)}


READ = {
    "ids": "Positions.positions", "matrix": "Positions.positions", "square": "Positions.positions",
    "linear": "Positions.product", "tokens first": "Positions.product",
}  # fmt: skip


@pytest.mark.parametrize("tokens", [B, S])
@pytest.mark.parametrize("count", [2, 3, B])
@pytest.mark.parametrize("knowledge", ["factors", "dense"])
@pytest.mark.parametrize("read", list(READ))
@torch.no_grad()
def test_any_other_model_runs_as_a_whole_for_each_weights(read, knowledge, count, tokens, caplog):
    torch.manual_seed(0)
    model, weights = Positions(read).double(), some_weights()[:count]
    ids = torch.randint(40, (count, count if tokens == B else S))
    twin = TwinMergedModel(copy.deepcopy(model), random_exclusive(model, knowledge))
    slow = torch.cat([output["y"] for output in one_by_one(twin, model, weights, input_ids=ids)])
    for _ in range(2):
        torch.testing.assert_close(twin(input_ids=ids, weights=weights)["y"], slow, rtol=0, atol=1e-10)
    assert caplog.text.count(f"{READ[read]} has no routed form") == 1
    assert "the whole model runs once for each example's weights" in caplog.text


@pytest.mark.parametrize("tokens", [[S, B, S], [B, S, B]])
@torch.no_grad()
def test_a_modules_argument_of_as_many_rows_as_examples_by_chance(tokens):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.randn(12))

        def forward(self, x, positions):
            return x * self.scale + positions[: x.shape[1], None]

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.scaled = nn.Embedding(40, 12), Scaled()

        def forward(self, input_ids):
            return {"y": self.scaled(self.tokens(input_ids), torch.arange(1.0, input_ids.shape[1] + 1).double())}

    model, weights = Outer().double(), some_weights()
    twin = TwinMergedModel(copy.deepcopy(model), random_exclusive(model, "dense"))
    for count in tokens:
        ids = torch.randint(40, (B, count))
        slow = torch.cat([output["y"] for output in one_by_one(twin, model, weights, input_ids=ids)])
        torch.testing.assert_close(twin(input_ids=ids, weights=weights)["y"], slow, rtol=0, atol=1e-10)


def test_what_has_no_row_for_each_example_is_refused():
    model, ids = Positions("matrix").double(), torch.randint(40, (B, S))
    twin = TwinMergedModel(model, random_exclusive(model, "dense"))
    with pytest.raises(UserError, match="such as a loss") as caught:
        twin(input_ids=ids, labels=torch.tensor([0, 1, 2, 3]), weights=some_weights())
    assert caught.value.key == "Positions"
    with pytest.raises(UserError, match="no argument of so many rows"):
        twin(input_ids=ids, weights=some_weights()[:3])
    assert twin(input_ids=ids, labels=torch.tensor([0, 1, 2, 3]), weights=some_weights()[:1])["loss"] > 0


def test_a_parameter_that_differs_tells_its_dtype_and_no_numbers():
    model = Positions("ids").double()
    twin = TwinMergedModel(model, random_exclusive(model, "dense"))
    layer = twin.encoder.product
    with twin.mixture.of(some_weights()):
        assert (layer.weight.dtype, layer.weight.shape, layer.in_features) == (torch.float64, (12, 12), 12)
        assert layer.bias.device.type == "cpu"
        for read in (
            lambda: layer.weight.t(),
            lambda: layer.weight.T,
            lambda: layer.bias + 1,
            lambda: torch.relu(layer.bias),
        ):
            with pytest.raises(UserError, match=r"Positions.product: this module cannot be routed"):
                read()
    assert torch.equal(layer.weight, model.product.shared.weight)


@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_generation_with_relative_positions(use_cache):
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(**T5)).eval()
    for parameter in model.parameters():
        parameter.mul_(2)
    deltas, (ids, mask) = random_exclusive(model, "factors"), batch()
    twin = TwinMergedModel(copy.deepcopy(model), deltas)
    settings = {
        "max_new_tokens": 5,
        "min_new_tokens": 5,
        "do_sample": False,
        "attention_mask": mask,
        "use_cache": use_cache,
    }
    for alike in (torch.zeros(B).long(), ALIKE):
        weights = some_weights(torch.float32, alike)
        if use_cache and alike is ALIKE:
            with pytest.raises(UserError, match="cache"):
                twin.generate(ids, weights, **settings)
            continue
        found = twin.generate(ids, weights, **settings)
        for row, w in enumerate(weights):
            model.load_state_dict(twin.merge_for(w))
            alone = model.generate(ids[row : row + 1], **{**settings, "attention_mask": mask[row : row + 1]})
            assert torch.equal(found[row : row + 1], alone)


@pytest.mark.parametrize("knowledge", ["factors", "dense"])
@torch.no_grad()
def test_torchs_encoder_layer_reads_the_weights_of_its_parts(knowledge, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 2, 20, batch_first=True), 2).double().eval()
    twin = TwinMergedModel(copy.deepcopy(model), random_exclusive(model, knowledge))
    x = torch.randn(B, S, 12, dtype=torch.float64)
    for weights in (some_weights(), some_weights(alike=torch.zeros(B).long())):
        slow = torch.cat(one_by_one(twin, model, weights, src=x))
        torch.testing.assert_close(twin(src=x, weights=weights), slow, rtol=0, atol=1e-10)


@torch.no_grad()
def test_few_experts_are_left_out_before_there_are_groups():
    encoder, (ids, mask), weights = encoder_of("mpnet"), batch(), some_weights()
    deltas = random_exclusive(encoder, "dense")
    twin = TwinMergedModel(copy.deepcopy(encoder), deltas, Exact(mass=0.5))
    found = twin(input_ids=ids, attention_mask=mask, weights=weights).last_hidden_state
    with twin.mixture.of(weights):
        some = twin.mixture.weights
    assert not torch.equal(some, weights)
    expected = TwinMergedModel(encoder, deltas)(input_ids=ids, attention_mask=mask, weights=some).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
