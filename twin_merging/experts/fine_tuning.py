"""Fine-tuning one expert by ``transformers.Trainer``: the epoch that is best on validation, resumable after a kill."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from twin_merging.backbones.encoders import EncoderBackbone
from twin_merging.backbones.products import faster_products
from twin_merging.backbones.rows import Inputs, WithMore
from twin_merging.config import FullFineTuning
from twin_merging.evaluation.metrics import metrics
from twin_merging.evaluation.selection import choose
from twin_merging.experts.norms import statistics_of, without_lonely
from twin_merging.experts.workers import START, EpochCallback, plain_errors, workers_for
from twin_merging.progress import Progress
from twin_merging.tasks.base import TRAIN, VALIDATION, Task

log = logging.getLogger("twin_merging")
COMPLETE = "complete"  # the file that marks a checkpoint whose writing ended, with the sizes of its files
PEFT_PREFIX = "base_model.model."  # what peft puts before a model's own parameter names


def full_fine_tuning(
    backbone: EncoderBackbone, task: Task, options: FullFineTuning, seed: int, folder: Path, scratch: Path
) -> None:
    """Fine-tune every parameter on ``task`` and save a Hugging Face folder (paper appendix D.2).

    Args:
        folder: receives the model, the tokenizer, and ``expert.json`` with the validation score of every epoch.
        scratch: receives checkpoints; training goes on from the newest.
    """
    torch.manual_seed(seed)
    model = backbone.new_expert(task, options.backbone_dropout)
    backbone.check_head_reads_first_token(model)
    history = train(backbone, model, task, options, seed, scratch)
    save_expert(backbone, model, task, history, folder)


def train(
    backbone: EncoderBackbone,
    model: Any,
    task: Task,
    options: FullFineTuning,
    seed: int,
    scratch: Path,
) -> dict[str, Any]:
    """Train a transformers or peft model in place and leave it with the weights of its best epoch.

    Returns:
        Plain JSON: ``choice``, the record of the epoch's choice, and ``train_tokens``.
    """
    scores, inputs = metrics[task.metric], backbone.training_inputs(task, seed)

    def compute_metrics(prediction) -> dict[str, float]:
        return {"score": scores(predictions_of(prediction.predictions, task), prediction.label_ids.tolist())}

    rows, held_out = labelled(inputs, task, TRAIN), labelled(backbone.inputs(task, VALIDATION), task, VALIDATION)
    workers = workers_for(options.workers, backbone.made_bytes(task), options.batch_size)
    by_epoch = fit(
        backbone, model, rows, held_out, compute_metrics, options, seed, scratch, task.name, workers=workers,
        callbacks=statistics_of(backbone, backbone.encoder(model), [task]),
    ).scores  # fmt: skip
    choice = choose(f"epoch of {task.name}", by_epoch, task, VALIDATION)
    return {"choice": choice, "train_tokens": sum(inputs.lengths) * options.epochs}


class Fitted(NamedTuple):
    """What training gives.

    Args:
        scores: by epoch.
        state: the weights, whole, where the model's own are spread over processes; else None.
        kind: accelerate's name of how processes shared the work, such as ``FSDP``; ``NO`` for one process.
    """

    scores: dict[int, float]
    state: dict[str, Any] | None
    kind: str


def fit(
    backbone: Any, model: Any, rows: Any, held_out: Any,
    compute_metrics: Callable[[Any], dict[str, float]], options: Any, seed: int, scratch: Path, label: str,
    changed: Mapping[str, Any] | None = None, workers: int = 0, callbacks: Sequence[TrainerCallback] = (), **parts: Any,
) -> Fitted:  # fmt: skip
    """Train in place on ``rows`` and leave the weights of the epoch whose ``score`` on ``held_out`` is best.

    Args:
        rows: a list, or what makes a row when it is asked for.
        options: of fine-tuning, such as ``FullFineTuning``.
        changed: values of ``TrainingArguments`` that replace what follows from the options.
        workers: processes that make rows.
        callbacks: more of the ``Trainer``'s.
        parts: of the ``Trainer``, in place of the collator and the optimizer for an encoder with a head.
    """
    learned = without_lonely(rows, options.batch_size, model, label)
    steps = -(-len(learned) // options.batch_size) * options.epochs
    arguments = TrainingArguments(
        output_dir=str(scratch), seed=seed, data_seed=seed, use_cpu=backbone.device.type == "cpu",
        num_train_epochs=options.epochs, per_device_train_batch_size=options.batch_size, per_device_eval_batch_size=64,
        learning_rate=options.lr, lr_scheduler_type=options.scheduler, warmup_steps=round(options.warmup * steps),
        weight_decay=options.weight_decay, bf16=backbone.autocast, eval_strategy="epoch", save_strategy="epoch",
        load_best_model_at_end=True, metric_for_best_model="score", greater_is_better=True,
        logging_strategy="epoch", report_to="none", disable_tqdm=True, dataloader_pin_memory=backbone.device.type != "cpu",
        label_names=["labels"], remove_unused_columns=False, dataloader_num_workers=workers,
        dataloader_multiprocessing_context=START if workers else None,
    )  # fmt: skip
    for name, value in (changed or {}).items():
        setattr(arguments, name, value)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=learned,
        eval_dataset=held_out,
        compute_metrics=compute_metrics,
        callbacks=[_EtaCallback(label), _CheckpointCallback(), EpochCallback(rows), *callbacks],
        **(parts or _with_head(backbone, model, options)),
    )
    trainer.remove_callback(_printer())
    checkpoint = _usable_checkpoint(scratch)
    if checkpoint is not None:
        log.info("  fine-tune %s goes on from step %s", label, checkpoint.rpartition("-")[2])
    with faster_products(model, backbone.autocast), plain_errors(), _own_names(model):
        trainer.train(resume_from_checkpoint=checkpoint)
    scores = {int(row["epoch"]): row["eval_score"] for row in trainer.state.log_history if "eval_score" in row}
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped) if sharded else None
    return Fitted(scores, state, trainer.accelerator.distributed_type.value)


@contextmanager
def _own_names(model: Any) -> Iterator[None]:
    """Save a model's weights by its own names. By those of published files, which transformers would give them, neither a run
    that goes on nor the choice of an epoch finds them again."""
    if not isinstance(model, PreTrainedModel):
        yield
        return
    model.save_pretrained = partial(model.save_pretrained, save_original_format=False)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.save_pretrained


def save_expert(backbone: EncoderBackbone, model: Any, task: Task, history: dict[str, Any], folder: Path) -> None:
    """Write the model and what makes its input as a Hugging Face folder, and ``expert.json``."""
    if task.class_names:
        model.config.id2label = dict(enumerate(task.class_names))
        model.config.label2id = {name: index for index, name in enumerate(task.class_names)}
    model.save_pretrained(
        folder, save_original_format=False
    )  # by its own names, which those of published files may differ from
    backbone.save_reader(folder)
    (folder / "expert.json").write_text(json.dumps({"task": task.name, **history}, indent=1))


def predictions_of(logits, task: Task) -> list[int] | list[float]:
    """Class indices, or numbers for regression, of logits (rows, num_labels)."""
    values = torch.as_tensor(logits).float()
    return values.argmax(-1).tolist() if task.kind == "single_label" else values.flatten().tolist()


def labelled(inputs: Inputs, task: Task, split: str) -> WithMore:
    """A split's rows as the Trainer takes them: what the model reads, and ``labels``."""
    return WithMore(inputs.rows, [{"labels": label} for label in task.splits[split].labels])


def _with_head(backbone: EncoderBackbone, model: Any, options: FullFineTuning) -> dict[str, Any]:
    """What a ``Trainer`` needs for an encoder with a head."""
    return {"data_collator": backbone.collate, "optimizers": (_optimizer(model, options), None)}


def _optimizer(model: Any, options: FullFineTuning) -> torch.optim.Optimizer:
    """AdamW with the head's own learning rate and no decay on biases and norms."""
    prefix = model.base_model_prefix + "."
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            in_encoder = name.removeprefix(PEFT_PREFIX).startswith(prefix)
            groups.setdefault((in_encoder, parameter.dim() > 1), []).append(parameter)
    head_lr = options.lr if options.head_lr is None else options.head_lr
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": options.lr if encoder else head_lr,
                "weight_decay": options.weight_decay if matrix else 0.0,
            }
            for (encoder, matrix), parameters in groups.items()
        ],
        fused=True,
    )


def _usable_checkpoint(scratch: Path) -> str | None:
    """The newest whole checkpoint; one that is not is removed."""
    while (newest := get_last_checkpoint(str(scratch)) if scratch.is_dir() else None) is not None:
        if _is_whole(Path(newest)):
            return newest
        shutil.rmtree(newest)
    return None


def _is_whole(checkpoint: Path) -> bool:
    """Whether its writing ended and its removal had not begun, and the same of the best checkpoint that it names."""
    try:
        sizes = json.loads((checkpoint / COMPLETE).read_text())
        if any((checkpoint / name).stat().st_size != size for name, size in sizes.items()):
            return False
        best = json.loads((checkpoint / "trainer_state.json").read_text())["best_model_checkpoint"]
    except (OSError, ValueError):
        return False
    return best is None or Path(best) == checkpoint or _is_whole(Path(best))


def _printer() -> type[TrainerCallback]:
    from transformers import PrinterCallback

    return PrinterCallback


class _EtaCallback(TrainerCallback):
    """Shows steps with an ETA."""

    def __init__(self, label: str):
        self.label = label

    def on_train_begin(self, args, state, control, **_):
        self.bar = (
            Progress(f"fine-tune {self.label}", state.max_steps, "steps") if state.is_world_process_zero else None
        )
        self.on_step_end(args, state, control)

    def on_step_end(self, args, state, control, **_):
        if self.bar:
            self.bar.update(state.global_step)

    def on_train_end(self, args, state, control, **_):
        if self.bar:
            self.bar.close()


class _CheckpointCallback(TrainerCallback):
    """Marks a checkpoint once all its files are written, and only then removes older ones but for the best.

    The Trainer's own ``save_total_limit`` removes them before, so that a kill in between would leave none.
    """

    def on_save(self, args, state, control, **_):
        if not state.is_world_process_zero:
            return
        scratch = Path(args.output_dir)
        checkpoint = scratch / f"checkpoint-{state.global_step}"
        files = [path for path in checkpoint.rglob("*") if path.is_file()]
        sizes = {str(path.relative_to(checkpoint)): path.stat().st_size for path in files}
        unfinished = scratch / f".{COMPLETE}"
        unfinished.write_text(json.dumps(sizes))
        unfinished.replace(checkpoint / COMPLETE)
        for other in scratch.glob("checkpoint-*"):
            if str(other) not in (str(checkpoint), state.best_model_checkpoint):
                shutil.rmtree(other)
