"""Ways of answering a batch in which every example has merged weights of its own: ours, the paper's, and others'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from transformers import LlamaConfig, LlamaForCausalLM, RobertaConfig, RobertaModel

from twin_merging.config import Exact
from twin_merging.config import MlpRouter as RouterOptions
from twin_merging.dynamic.grouping import group
from twin_merging.dynamic.model import TwinMergedModel
from twin_merging.routers.mlp import MlpRouter
from twin_merging.sparsifiers.stored import multiplied_out
from twin_merging.sparsifiers.svd import Factors

STATIC, FAST = "static", "static, same kernels"
CHECKED = 4  # examples of the batch that are compared with merged models
MEMORY = "3GB"  # for dense deltas
CHUNK = 2  # examples whose whole weights vmap has at a time
PLACE: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
"""Where models, knowledge and weights are, and of which dtype; changed before any is made."""


class Way(NamedTuple):
    """One way to answer a batch.

    Args:
        run: gives the output.
        exact: gives what the first rows of it are, from a merged model for each; None where it answers something else.
        twin: our model, if it is one.
    """

    run: Callable[[], Tensor]
    exact: Callable[[], Tensor] | None = None
    twin: TwinMergedModel | None = None


Ways = dict[str, Way]


def roberta(attention: str = "sdpa") -> nn.Module:
    """An encoder of RoBERTa-base's size."""
    torch.manual_seed(0)
    return RobertaModel(RobertaConfig(attn_implementation=attention), add_pooling_layer=False).eval().to(**PLACE)


def smollm2() -> nn.Module:
    """A language model of SmolLM2-135M's size."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(10)  # so that rounding does not decide between two tokens
    return model.to(**PLACE)


def there(ids: Tensor) -> Tensor:
    """Token ids, where models are."""
    return ids.to(PLACE["device"])


def knowledge(model: nn.Module, experts: int, rank: int) -> dict[str, Factors | Tensor]:
    """v_t of every parameter as small random numbers: factors of matrices, whole vectors."""
    generator, found = torch.Generator().manual_seed(rank), {}

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(**PLACE)

    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            m, n = parameter.shape
            found[name] = Factors(
                drawn(experts, m, rank) / m**0.5,
                torch.full((experts, rank), 0.2, **PLACE),
                drawn(experts, n, rank) / n**0.5,
            )
        else:
            found[name] = 0.01 * drawn(experts, *parameter.shape)
    return found


def soft(examples: int, experts: int) -> Tensor:
    """Weights that leave no expert out."""
    return torch.randn(examples, experts, generator=torch.Generator().manual_seed(1)).softmax(-1).to(**PLACE)


class Encoder:
    """One batch for an encoder, and ways to answer it.

    Args:
        rank: of v_t.
        experts: T.
        examples, tokens: the batch is (examples, tokens).
    """

    def __init__(self, rank: int, experts: int = 8, examples: int = 32, tokens: int = 128):
        self.ids = there(torch.randint(4, 50000, (examples, tokens), generator=torch.Generator().manual_seed(2)))
        self.mask, self.plain = torch.ones_like(self.ids), roberta()
        self.deltas = knowledge(self.plain, experts, rank)
        self.weights = soft(examples, experts)
        self.first = torch.zeros_like(self.weights).scatter(1, self.weights.argmax(1, keepdim=True), 1.0)
        self._exact: list[tuple[Tensor, Tensor]] = []
        self.hidden, self.experts = self.plain.config.hidden_size, experts

    def run(self, model: nn.Module, rows: slice | Tensor = slice(None), **more) -> Tensor:
        """The last states of some rows."""
        return model(input_ids=self.ids[rows], attention_mask=self.mask[rows], **more).last_hidden_state

    def twin(self, router: nn.Module | None = None, **options) -> TwinMergedModel:
        """Our model."""
        return TwinMergedModel(roberta(), self.deltas, Exact(**options), router)

    def exact(self, weights: Tensor) -> Callable[[], Tensor]:
        """The first rows' output, from a merged model for each, found when it is asked for and once."""

        def find() -> Tensor:
            known = [output for given, output in self._exact if given is weights]
            if not known:
                twin = self.twin(memory="1KB", kernels="stock")
                known = [merged_in_turn(twin, roberta(), weights[:CHECKED], self.run)()]
                self._exact.append((weights, known[0]))
            return known[0]

        return find

    def static(self, kernels: str) -> Ways:
        """The shared expert alone: by torch's own products, and by those that ours takes."""
        found = {STATIC: Way(lambda: self.run(self.plain))}
        if kernels != "stock":
            twin = self.twin(kernels=kernels)
            found[FAST] = Way(lambda: self.run(twin, weights=None))
        return found

    def plans(self, plans: tuple[str, ...], kernels: str) -> Ways:
        """Ours, by plan."""
        return {plan: self._mixed(self.weights, plan=plan, kernels=kernels) for plan in plans}

    def top_one(self, kernels: str) -> Ways:
        """Ours, each example with the knowledge of one expert alone."""
        return {"top-1": self._mixed(self.first, kernels=kernels)}

    def alike(self, kernels: str) -> Ways:
        """Ours, where all examples have the same weights."""
        return {"all alike": self._mixed(self.weights[:1].repeat(len(self.ids), 1), kernels=kernels)}

    def routed(self, kernels: str) -> Ways:
        """Ours with its routing: by the last layer, as in the paper, and by an early one, of which blocks are run again or not."""
        found: Ways = {}
        for name, layer, lower in (
            ("routed by the last layer", -1, "mixed"), ("routed by layer 1", 1, "mixed"), ("routed by layer 1, in one pass", 1, "shared"),
        ):  # fmt: skip
            router = MlpRouter(RouterOptions(layer=layer), self.hidden, self.experts).eval().to(PLACE["device"])
            twin = self.twin(router, memory="1KB", kernels=kernels, lower=lower)
            found[name] = self._answered(twin)
        return found

    def grouped(self) -> Ways:
        """The paper's faster variant: a merged model for each group of examples, loaded and run; and ours of the same weights."""
        numbers, means = group(self.weights, 1)
        members = [(numbers == number).nonzero().flatten() for number in range(len(means))]
        own, twin = roberta(), self.twin(memory="1KB", kernels="stock")

        def published() -> Tensor:
            parts = []
            for w, rows in zip(means, members, strict=True):
                own.load_state_dict(twin.merge_for(w))
                parts.append(self.run(own, rows))
            return torch.cat(parts)[torch.cat(members).argsort()]

        return {
            f"group-wise, {len(means)} models": Way(published),
            f"group-wise, {len(means)} groups in one batch": self._mixed(
                means[numbers], memory=MEMORY, kernels="stock"
            ),
        }

    def one_at_a_time(self) -> Ways:
        """The paper's way, and its best: dense deltas in memory, summed up into the model's own tensors."""
        own, twin = roberta(), self.twin(memory="1KB", kernels="stock")
        dense = {name: multiplied_out(delta).flatten(1) for name, delta in self.deltas.items()}
        start = {name: tensor.detach().clone().flatten() for name, tensor in roberta().named_parameters()}
        tensors = dict(own.named_parameters())

        def well() -> Tensor:
            outputs = []
            for row, w in enumerate(self.weights):
                for name, tensor in tensors.items():
                    torch.addmv(start[name], dense[name].mT, w, out=tensor.data.view(-1))
                outputs.append(self.run(own, slice(row, row + 1)))
            return torch.cat(outputs)

        merged = merged_in_turn(twin, roberta(), self.weights, self.run)
        return {
            "one at a time": Way(merged),
            "one at a time, dense deltas": Way(well, self.exact(self.weights)),
            "vmap": Way(self._vmap(dense, start), self.exact(self.weights)),
        }

    def _vmap(self, dense: dict[str, Tensor], start: dict[str, Tensor]) -> Callable[[], Tensor]:
        """torch.func: some examples' whole weights are made, and the model runs on all of them at once."""
        own = roberta("eager")  # the fused attention has no batching rule
        shapes, buffers = {name: x.shape for name, x in own.named_parameters()}, dict(own.named_buffers())

        def answer(parameters: dict[str, Tensor], ids: Tensor) -> Tensor:  # no mask: transformers would look into it
            return functional_call(own, {**parameters, **buffers}, kwargs={"input_ids": ids[None]}).last_hidden_state[0]

        def run() -> Tensor:
            outputs = []
            for rows in torch.arange(len(self.ids)).split(CHUNK):
                w = self.weights[rows]
                made = {x: torch.addmm(start[x], w, dense[x]).view(-1, *shapes[x]) for x in dense}
                outputs.append(vmap(answer)(made, self.ids[rows]))
            return torch.cat(outputs)

        return run

    def _mixed(self, weights: Tensor, **options) -> Way:
        twin = self.twin(**{"memory": MEMORY, **options})
        return Way(lambda: self.run(twin, weights=weights), self.exact(weights), twin)

    def _answered(self, twin: TwinMergedModel) -> Way:
        return Way(lambda: twin.answer(input_ids=self.ids, attention_mask=self.mask).last_hidden_state, twin=twin)


def decoding(rank: int, new: int, kernels: str, slow: bool) -> Ways:
    """Ways to go on from eight prompts of different tasks."""
    ids = there(torch.randint(4, 40000, (8, 32), generator=torch.Generator().manual_seed(2)))
    settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
    plain, weights = smollm2(), soft(8, 8)
    deltas = knowledge(plain, 8, rank)
    router = MlpRouter(RouterOptions(layer=-1), plain.config.hidden_size, 8).eval().to(PLACE["device"])
    twin = TwinMergedModel(smollm2(), deltas, Exact(memory="1GB", kernels=kernels), router)

    def run(model: nn.Module, rows: slice = slice(None)) -> Tensor:
        return model.generate(input_ids=ids[rows], attention_mask=torch.ones_like(ids[rows]), **settings)

    def ours(weights: Tensor | None) -> Tensor:
        return twin.generate(ids, weights, attention_mask=torch.ones_like(ids), **settings)

    def alone() -> Tensor:
        with twin.mixture.of(None):
            return run(twin.encoder)

    exact = merged_in_turn(twin, smollm2(), weights[:CHECKED], run) if slow else None
    ways = {STATIC: Way(lambda: run(plain))}
    if kernels != "stock":
        ways[FAST] = Way(alone)
    ways |= {
        "auto": Way(lambda: ours(weights), exact, twin), "with routing": Way(lambda: ours(None), None, twin),
        "all alike": Way(lambda: ours(weights[:1].repeat(8, 1)), None, twin),
    }  # fmt: skip
    if slow:
        ways["one at a time"] = Way(merged_in_turn(twin, smollm2(), weights, run))
    return ways


def merged_in_turn(twin: TwinMergedModel, own: nn.Module, weights: Tensor, run: Callable) -> Callable[[], Tensor]:
    """The paper's way: for each example the weights are merged from the factors and loaded, and it is answered alone."""

    def answer() -> Tensor:
        outputs = []
        for row, w in enumerate(weights):
            own.load_state_dict(twin.merge_for(w))
            outputs.append(run(own, slice(row, row + 1)))
        return torch.cat(outputs)

    return answer
