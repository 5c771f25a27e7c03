"""Fine-tuning language models on prompts and completions: adapters (the paper's generative experts), or all parameters."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType, prepare_model_for_kbit_training
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from twin_merging.backbones.causal_lm import CausalLMBackbone, language_model
from twin_merging.backbones.lengths import by_length
from twin_merging.config import CausalFineTuning, CausalLora
from twin_merging.errors import UserError
from twin_merging.evaluation.selection import record
from twin_merging.experts.fine_tuning import fit
from twin_merging.experts.lora import adapt
from twin_merging.progress import progress
from twin_merging.ranks import count, is_first
from twin_merging.tasks.base import VALIDATION
from twin_merging.tasks.generation import Example

log = logging.getLogger("twin_merging")
IGNORED = -100  # the label of a token whose loss does not count
CHECKPOINTING = {
    "use_reentrant": False
}  # reentrant, it needs inputs with a gradient, which embeddings that rest have not
PLAIN = (
    512  # up to so many tokens plain attention learns faster on a CPU than the fused one, for memory that is quadratic
)
Row = dict[str, list[int]]


def causal_fine_tuning(
    backbone: CausalLMBackbone, name: str, rows: Sequence[Example], held_out: Sequence[Example],
    options: CausalFineTuning, seed: int, folder: Path, scratch: Path,
) -> None:  # fmt: skip
    """Fine-tune every parameter and save a Hugging Face folder (paper Table 10).

    Args:
        name: of the task.
        rows, held_out: training and validation rows; none is a row of a test split.
        folder: receives the model, the tokenizer, and ``expert.json`` with the validation score of every epoch.
        scratch: receives checkpoints; training goes on from the newest.
    """
    torch.manual_seed(seed)
    model = backbone.load(training=True)
    history, state = train_completions(backbone, model, name, rows, held_out, options, seed, scratch)
    if is_first():
        model.save_pretrained(folder, state_dict=state)
        backbone.tokenizer.save_pretrained(folder)
        _write(folder, name, history)


def causal_lora(
    backbone: CausalLMBackbone, name: str, rows: Sequence[Example], held_out: Sequence[Example],
    options: CausalLora, seed: int, folder: Path, scratch: Path,
) -> None:  # fmt: skip
    """Fine-tune θ₀ + (α/r)·BA and save a PEFT adapter folder.

    Args:
        name, rows, held_out, scratch: as of ``causal_fine_tuning``.
        folder: receives the adapter and ``expert.json``.

    Raises:
        UserError: if ``targets`` match no linear layer, or quantizing needs a package that is not installed.
    """
    torch.manual_seed(seed)
    model = _base(backbone, options)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM, r=options.rank, lora_alpha=options.alpha, lora_dropout=options.dropout,
        target_modules=options.targets,
    )  # fmt: skip
    adapted = adapt(model, config)
    history, state = train_completions(backbone, adapted, name, rows, held_out, options, seed, scratch)
    if not is_first():
        return
    saved = adapted.peft_config["default"]
    saved.base_model_name_or_path, saved.revision = backbone.options.pretrained, backbone.options.revision
    adapted.save_pretrained(folder, save_embedding_layers=False, state_dict=state)
    (folder / "README.md").unlink(missing_ok=True)  # peft's template of a model card
    _write(folder, name, history)


def train_completions(
    backbone: CausalLMBackbone, model: Any, name: str, rows: Sequence[Example], held_out: Sequence[Example],
    options: CausalFineTuning, seed: int, scratch: Path,
) -> tuple[dict[str, Any], dict[str, Any] | None]:  # fmt: skip
    """Train a transformers or peft model in place and leave it with the weights of its best epoch.

    Returns:
        Plain JSON: ``choice``, the record of the epoch's choice by −loss a token, ``train_tokens``, and ``processes`` where
        several could share the work; and as of ``fit``
        the whole weights where they are spread over processes.

    Raises:
        UserError: if ``micro_batch`` does not divide ``batch_size``, or what each process has of it.
    """
    micro, processes = min(options.micro_batch, options.batch_size), count()
    if options.batch_size % (micro * processes):
        raise UserError(
            "a step is made of whole micro batches", key="finetune.micro_batch", found=micro,
            expected=f"a divisor of batch_size={options.batch_size}" + (f" / {processes} processes" if processes > 1 else ""),
        )  # fmt: skip
    tokens = labelled(backbone, rows, options.max_length)
    changed = {
        "per_device_train_batch_size": micro, "per_device_eval_batch_size": micro,
        "gradient_accumulation_steps": options.batch_size // (micro * processes), "gradient_checkpointing": options.checkpointing,
        "gradient_checkpointing_kwargs": CHECKPOINTING, "ddp_find_unused_parameters": False,
        "train_sampling_strategy": "group_by_length" if options.group_by_length else "random",
    }  # fmt: skip
    own = language_model(model)
    caching, attention = own.config.use_cache, own.config._attn_implementation
    if backbone.device.type == "cpu" and max(len(row["input_ids"]) for row in tokens) <= PLAIN:
        own.set_attn_implementation("eager")
    trimmed = {"logits_to_keep", "position_ids"} <= set(inspect.signature(own.forward).parameters)
    fitted = fit(
        backbone, model, tokens, labelled(backbone, held_out, options.max_length), _score, options, seed, scratch, name,
        changed, data_collator=partial(padded, trimmed=trimmed), preprocess_logits_for_metrics=losses,
    )  # fmt: skip
    own.set_attn_implementation(attention)
    own.config.use_cache = caching  # which the Trainer turns off
    choice = record(f"epoch of {name}", fitted.scores, VALIDATION, len(held_out), {name: fingerprint(held_out)})
    learned = sum(len(row["input_ids"]) for row in tokens) * options.epochs
    shared = {"processes": {"count": processes, "kind": fitted.kind}} if options.accelerate is not None else {}
    return {"choice": choice, "train_tokens": learned, **shared}, fitted.state


def labelled(backbone: CausalLMBackbone, examples: Sequence[Example], max_length: int) -> list[Row]:
    """Token ids of prompt, completion and the token that ends a text, with labels for the last two alone.

    A prompt is tokenized by itself, as it is when it is answered. A row of more than ``max_length`` tokens loses the
    beginning of its prompt, and what its completion alone has too many.
    """
    prompts = backbone.tokenize([example.prompt for example in examples])
    answers = backbone.tokenizer([example.completion for example in examples], add_special_tokens=False)["input_ids"]
    rows, cut = [], 0
    for prompt, answer in zip(prompts, answers, strict=True):
        answer = [*answer, backbone.tokenizer.eos_token_id][:max_length]
        kept = prompt[max(0, len(prompt) + len(answer) - max_length) :]
        cut += len(kept) < len(prompt)
        rows.append({"input_ids": kept + answer, "labels": [IGNORED] * len(kept) + answer})
    if cut:
        log.warning("%d of %d prompts are cut to finetune.max_length=%d tokens", cut, len(rows), max_length)
    return rows


def padded(rows: Sequence[Row], trimmed: bool = True) -> dict[str, Any]:
    """A batch: ids, mask and labels, (rows, tokens).

    Args:
        trimmed: pad on the left and ask for the logits of the last tokens alone, as many as some row has labels and one
            more, to which ``labels`` is cut. The output layer is a fifth of a small model's work. A model whose
            ``forward`` takes neither ``logits_to_keep`` nor ``position_ids`` is given all, padded on the right.
    """
    side = "left" if trimmed else "right"

    def column(values: list[list[int]], fill: int) -> Tensor:
        return pad_sequence([torch.tensor(each) for each in values], True, fill, padding_side=side)

    ids, labels = [row["input_ids"] for row in rows], column([row["labels"] for row in rows], IGNORED)
    mask = column([[1] * len(each) for each in ids], 0)
    batch = {"input_ids": column(ids, 0), "attention_mask": mask, "labels": labels}
    if not trimmed:
        return batch
    kept = 1 + int((labels != IGNORED).sum(1).max())  # labels are a row's last tokens
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return {**batch, "position_ids": positions, "labels": labels[:, -kept:], "logits_to_keep": kept}


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Of each row the sum of its labels' losses in nats, and their number: (rows, 2) from logits (rows, tokens, words)."""
    given, wanted = logits[:, :-1], labels[:, 1:]
    counts = wanted != IGNORED
    each = torch.zeros(wanted.shape, device=logits.device)
    each[counts] = functional.cross_entropy(given[counts].float(), wanted[counts], reduction="none")
    return torch.stack([each.sum(1), counts.sum(1)], 1)


def fingerprint(examples: Sequence[Example]) -> str:
    """SHA-256 of the rows: equal for equal ones in equal order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps([example.prompt, example.completion]).encode() + b"\n")
    return digest.hexdigest()


@torch.inference_mode()
def log_likelihood(backbone: CausalLMBackbone, model: Any, rows: Sequence[Row], batch_size: int, label: str) -> float:
    """Nats a token, of all rows' labels together: what training chooses its epoch by.

    Args:
        model: a plain one, under θ of any kind.
        rows: as of ``labelled``.
        label: of the progress.
    """
    total = torch.zeros(2)
    trimmed = {"logits_to_keep", "position_ids"} <= set(inspect.signature(model.forward).parameters)
    with progress(label, len(rows), "rows") as bar, backbone.answering(model):
        for chosen in by_length([len(row["input_ids"]) for row in rows], batch_size, model.device):
            batch = {
                name: value.to(model.device) if isinstance(value, Tensor) else value
                for name, value in padded([rows[row] for row in chosen], trimmed).items()
            }
            labels = batch.pop("labels")
            total += losses(model(**batch, use_cache=False).logits, labels).sum(0).cpu()
            bar.advance(len(labels))
    return -float(total[0] / total[1])


def _score(prediction: Any) -> dict[str, float]:
    """−loss a token, of all rows together: the higher the better."""
    total, count = prediction.predictions.sum(0)
    return {"score": -float(total / count)}


def _base(backbone: CausalLMBackbone, options: CausalLora) -> Any:
    """θ₀ as adapters are trained on it."""
    if options.quantize == "none":
        return backbone.load(training=True)
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UserError(
            "quantizing needs bitsandbytes", key="finetune.quantize", found=options.quantize,
            hint="pip install 'twin_merging[qlora]', or finetune.quantize=none",
        ) from error  # fmt: skip
    from transformers import BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    model = backbone.load(training=True, quantization_config=nf4, device_map={"": backbone.device})
    return prepare_model_for_kbit_training(model, options.checkpointing, CHECKPOINTING)


def _write(folder: Path, name: str, history: dict[str, Any]) -> None:
    (folder / "expert.json").write_text(json.dumps({"task": name, **history}, indent=1))
