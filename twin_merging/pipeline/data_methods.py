"""What the stages compute that see data between the experts and the scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twin_merging import checkpoints, parameters
from twin_merging.backbones import batchnorm, statistics
from twin_merging.backbones.features import Features, Head, read_by_head
from twin_merging.backbones.products import faster_products
from twin_merging.backbones.rows import Inputs
from twin_merging.checkpoints import Checkpoint
from twin_merging.config import Ties, merge_methods
from twin_merging.evaluation.heads import Answer
from twin_merging.evaluation.selection import refuse_test, unlabelled
from twin_merging.experts.multitask import HEADS
from twin_merging.merging import surgery
from twin_merging.merging.adamerging import Learned, Mixture, entropy, learn, task_vectors
from twin_merging.merging.regmean import Turned
from twin_merging.merging.stack import Stack
from twin_merging.merging.ties import Vote, vote
from twin_merging.pipeline import data_stages
from twin_merging.pipeline.artefacts import (
    ENCODER,
    backbone_of,
    base_weights,
    encoder_with,
    expert_weights,
    features_of,
    head_states,
    heads_of,
    inputs_of,
    read_all,
    task_of,
    tasks_of,
)
from twin_merging.pipeline.stages import Stages
from twin_merging.tasks.base import TRAIN, VALIDATION, Task

ADAPTERS = "adapters.safetensors"

# --- statistics of each expert ----------------------------------------------------------------------------------------


def fisher(stages: Stages, method: Any, index: int, folder: Path, scratch: Path) -> None:
    """The diagonal of an expert's Fisher information, by parameter name."""
    task, backbone = task_of(stages, stages.names[index]), backbone_of(stages)
    refuse_test(f"fisher of {task.name}", [task], VALIDATION)
    model = backbone.load(stages.get(stages.experts[index]).folder, task.num_labels, task.kind == "regression")
    found = statistics.diagonal_fisher(
        backbone, model, inputs_of(stages, task, VALIDATION, method.rows), method.labels,
        task.splits[VALIDATION].labels[: method.rows], stages.run.evaluation.batch_size,
        stages.run.seed, f"fisher: {task.name}",
    )  # fmt: skip
    checkpoints.save(found, folder / "statistic.safetensors")
    (folder / "layers.json").write_text(json.dumps({name: name for name in found}))


def gram(stages: Stages, method: Any, index: int, folder: Path, scratch: Path) -> None:
    """XᵀX of the inputs of an expert's linear layers, by layer, and which layer's each weight has."""
    task, backbone = task_of(stages, stages.names[index]), backbone_of(stages)
    encoder = encoder_with(stages, read_all(expert_weights(stages)[index]))
    inputs = inputs_of(stages, task, TRAIN, method.rows)
    found, layers = statistics.grams(
        backbone, encoder, inputs, stages.run.evaluation.batch_size, f"inputs: {task.name}"
    )
    checkpoints.save(found, folder / "statistic.safetensors")
    (folder / "layers.json").write_text(json.dumps(layers))


class PerExpert(Mapping[str, Any]):
    """A statistic of every expert by parameter name, (T, ...), read when it is asked for; ``Turned`` if its name says so.

    Args:
        files: each expert's.
        layers: parameter name -> the name that its statistic is stored by.
    """

    def __init__(self, files: Sequence[Mapping[str, Tensor]], layers: Mapping[str, str]):
        self._files, self._layers = files, layers

    def __getitem__(self, name: str) -> Any:
        stored = self._layers[name]
        values = torch.stack([file[stored] for file in self._files])
        return Turned(values) if stored.endswith(statistics.TURNED) else values

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


def statistics_of(stages: Stages, method: Any) -> Mapping[str, Any] | None:
    """By parameter name, what a static method has to know from data; None for data-free methods."""
    artefacts = [stages.get(stage) for stage in data_stages.statistics(stages, method)]
    if not artefacts:
        return None
    if method.needs == "coefficients":
        found, votes = Checkpoint(artefacts[0].path("coefficients.safetensors")), artefacts[0].json("votes.json")
        return {name: Learned(found[name], _vote(votes.get(name))) for name in found}
    files = [Checkpoint(artefact.path("statistic.safetensors")) for artefact in artefacts]
    return PerExpert(files, artefacts[0].json("layers.json"))


def _vote(stored: tuple[list[float], float] | None) -> Vote | None:
    if stored is None:
        return None
    thresholds, zero_sign = stored
    return Vote(torch.tensor(thresholds, dtype=torch.float64), lambda: zero_sign)


def choices_of(stages: Stages, method: Any) -> list[dict[str, Any]]:
    """What was learned or chosen before a static method merges."""
    learned = [stages.get(stage) for stage in data_stages.statistics(stages, method) if stage.name == "learn"]
    return [artefact.json("choice.json") for artefact in learned]


# --- learning from inputs without labels ------------------------------------------------------------------------------


def coefficients(stages: Stages, method: Any, folder: Path, scratch: Path) -> None:
    """λ of every task and parameter, by minimizing the entropy of the experts' heads' answers."""
    tasks, device = tasks_of(stages), backbone_of(stages).device
    data_stages.check_classes(method, {task.name: task.kind for task in tasks})
    start, experts = base_weights(stages), expert_weights(stages)
    selected = parameters.select(start, stages.run.parameters.include, stages.run.parameters.exclude)
    stack = Stack(start, experts, selected)
    encoder = encoder_with(stages, read_all(start)).to(device).eval()
    votes = vote(stack, Ties(density=method.density), stages.run.seed) if method.plus_plus else {}
    deltas = {name: task_vectors(stack.whole(name)[1], votes.get(name)).to(device) for name in stack.names}
    own = dict(encoder.named_parameters())
    encoder.requires_grad_(False)
    for name in deltas:
        own[name].requires_grad_()
    for module in encoder.modules():
        if isinstance(module, nn.Embedding):
            module.sparse = True  # a dense gradient of a vocabulary of which a batch has few words takes longer
    with faster_products(encoder, backbone_of(stages).autocast, repeated=True):
        learned, history = learn(Mixture(own, deltas), _entropy_of(stages, tasks, encoder, method), method)
    found = dict(zip(deltas, learned.T.contiguous(), strict=True))
    checkpoints.save(found, folder / "coefficients.safetensors")
    kept = {name: [each.thresholds.tolist(), each.zero_sign()] for name, each in votes.items()}
    (folder / "votes.json").write_text(json.dumps(kept))
    about = f"{learned.mean():.2f} on average, {learned.min():.2f} to {learned.max():.2f}"
    scores = {f"entropy at step {step}": history[step - 1] for step in (1, len(history))}
    (folder / "choice.json").write_text(json.dumps(unlabelled("λ", about, scores, tasks, method.inputs)))


def _entropy_of(stages: Stages, tasks: list[Task], encoder: Any, method: Any) -> Callable[[], float]:
    """A function that runs each task's next batch through the encoder and its head, and goes back from Σ_t mean entropy.

    BatchNorm, which has no statistics of an encoder that changes at every step, normalizes the batches of all tasks together
    by their own, as those of the encoder that λ merges to are found; they go through in one pass. Other encoders see some tasks
    after the others, in the memory of these.
    """
    backbone, heads = backbone_of(stages), heads_of(stages)
    generator = torch.Generator().manual_seed(stages.run.seed)
    inputs = [inputs_of(stages, task, method.inputs) for task in tasks]
    order = [surgery.shuffled(len(mine.rows), method.batch_size, generator) for mine in inputs]
    for head in heads.values():
        head.requires_grad_(False)
    layers = batchnorm.norms(encoder)
    at_once = len(tasks) if layers else _tasks_at_once(inputs, method)
    passes = torch.arange(len(tasks)).tensor_split(-(-len(tasks) // at_once))

    def entropies(passed: list[int]) -> Tensor:
        """Σ of these tasks' mean entropies, by one pass."""
        batches = [backbone.batch(inputs[index], next(order[index]).tolist()) for index in passed]
        read = backbone.embedded(encoder, {name: torch.cat([one[name] for one in batches]) for name in batches[0]})
        parts = [
            {name: value.tensor_split(len(passed))[place] for name, value in read.items()}
            for place in range(len(passed))
        ]
        logits = [heads[tasks[index].name].logits(part) for index, part in zip(passed, parts, strict=True)]
        return torch.stack([entropy(own).mean() for own in logits]).sum()

    def backward() -> float:
        total = 0.0
        for passed in passes:
            autocast = torch.autocast(backbone.device.type, torch.bfloat16, enabled=backbone.autocast)
            with autocast, batchnorm.by_batch(layers):
                loss = entropies(passed.tolist())
            loss.backward()
            total += loss.item()
        return total

    return backward


def _tasks_at_once(inputs: Sequence[Inputs], method: Any) -> int:
    """How many tasks' batches go through in one pass: of rows that differ in length one, which would be padded to the longest."""
    if len({length for mine in inputs for length in mine.lengths}) > 1:
        return 1
    return max(1, method.rows_at_once // method.batch_size)


def adapters(stages: Stages, folder: Path, scratch: Path) -> None:
    """Surgery's adapters: ``TASK.down`` and ``TASK.up``."""
    tasks, method = tasks_of(stages), stages.method
    by_merged, *by_experts = data_stages.seen_by_surgery(stages)
    merged = features_of(stages, by_merged, tasks)
    experts = [features_of(stages, stage, [task])[task.name] for stage, task in zip(by_experts, tasks, strict=True)]
    read = read_by_head(experts[0])
    down, up, history = surgery.learn(
        [merged[task.name][read] for task in tasks], [own[read] for own in experts], method, stages.run.seed
    )
    found = {f"{task.name}.down": matrix for task, matrix in zip(tasks, down, strict=True)}
    found |= {f"{task.name}.up": matrix for task, matrix in zip(tasks, up, strict=True)}
    checkpoints.save({name: matrix.contiguous() for name, matrix in found.items()}, folder / ADAPTERS)
    scores = {f"distance at step {step}": history[step - 1] for step in (1, len(history))}
    choice = unlabelled("adapters", f"rank {method.rank}", scores, tasks, method.inputs)
    (folder / "choice.json").write_text(json.dumps(choice))


def joint(stages: Stages, folder: Path, scratch: Path) -> None:
    """One encoder trained on all tasks, and its heads: ``TASK.NAME``."""
    tasks = tasks_of(stages)
    refuse_test("epoch of multitask", tasks, VALIDATION)
    train = merge_methods["multitask"].load()
    encoder, heads, choice = train(backbone_of(stages), tasks, stages.run.finetune, stages.run.training_seed, scratch)
    checkpoints.save(encoder, folder / ENCODER)
    checkpoints.save({f"{task}.{name}": x for task, head in heads.items() for name, x in head.items()}, folder / HEADS)
    (folder / "choice.json").write_text(json.dumps(choice))


# --- answering with what was learned ----------------------------------------------------------------------------------


def answering_heads(stages: Stages, heads: Mapping[str, Head]) -> Mapping[str, Answer]:
    """What answers for each task: the experts' heads, after the task's adapter in surgery; or those of joint training."""
    if stages.is_joint:
        states = _joint_heads(stages)
        return {task.name: backbone_of(stages).head(states[task.name], task.num_labels) for task in tasks_of(stages)}
    if stages.is_surgery:
        stored = Checkpoint(stages.get(data_stages.adapters(stages)).path(ADAPTERS))
        return {name: _operated(head, stored[f"{name}.down"], stored[f"{name}.up"]) for name, head in heads.items()}
    return heads


def size_of_heads(stages: Stages) -> tuple[int, int]:
    """(parameters, bytes) of what answers for the tasks beside the encoder."""
    states = list(_joint_heads(stages).values()) if stages.is_joint else head_states(stages)
    tensors = [tensor for state in states for tensor in state.values()]
    parameters, size = sum(tensor.numel() for tensor in tensors), sum(tensor.nbytes for tensor in tensors)
    if stages.is_surgery:
        adapters = stages.get(data_stages.adapters(stages))
        stored = Checkpoint(adapters.path(ADAPTERS))
        return parameters + sum(tensor.numel() for tensor in stored.values()), size + adapters.bytes(ADAPTERS)
    return parameters, size


def _operated(head: Head, down: Tensor, up: Tensor) -> Answer:
    def answer(features: Features) -> Tensor:
        read = read_by_head(features)
        return head({**features, read: surgery.operate(features[read], down, up)})

    return answer


def _joint_heads(stages: Stages) -> dict[str, dict[str, Tensor]]:
    stored = Checkpoint(stages.get(data_stages.joint(stages)).path(HEADS))
    return {
        task: {name.removeprefix(f"{task}."): stored[name] for name in stored if name.startswith(f"{task}.")}
        for task in stages.names
    }
