"""Models and tokenizers from Hugging Face folders, with one clear error for whatever is wrong with them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedModel

from twin_merging import checkpoints
from twin_merging.errors import UserError

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model", "*.tiktoken")


def load_model(auto_class: Any, source: Path, trust_remote_code: bool, **settings: Any) -> tuple[Any, dict[str, Any]]:
    """A model and transformers' report of the tensors that did not fit, which ``check_loaded`` judges.

    Args:
        auto_class: such as ``AutoModelForCausalLM``.
        settings: further arguments of ``from_pretrained``.

    Raises:
        UserError: if the folder holds no safetensors weights, or damaged ones.
    """
    try:
        return auto_class.from_pretrained(
            source, output_loading_info=True, use_safetensors=True, ignore_mismatched_sizes=True,
            trust_remote_code=trust_remote_code, **settings,
        )  # fmt: skip
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(f"cannot be loaded ({_first_line(error)})", key=str(source)) from error


def check_loaded(model: PreTrainedModel, report: dict[str, Any], source: Path, needed: Collection[str]) -> None:
    """Check that a model's ``needed`` tensors came from its folder, and that all are finite.

    Raises:
        UserError: for the first that is missing, of another shape, or not finite.
    """
    for name, found, expected in sorted(report["mismatched_keys"]):
        if name in needed:
            raise UserError(
                "a tensor of the wrong shape", key=f"{source}: {name}", found=list(found), expected=list(expected)
            )
    missing = sorted(set(report["missing_keys"]) & set(needed))
    if missing:
        raise UserError(
            "a tensor is missing", key=f"{source}: {missing[0]}", found=f"{len(missing)} missing",
            expected=f"every tensor of {type(model).__name__}",
        )  # fmt: skip
    for name, tensor in model.state_dict().items():
        checkpoints.check_finite(tensor, f"{source}: {name}")


def load_tokenizer(folder: Path, trust_remote_code: bool) -> Any:
    """The folder's tokenizer.

    Raises:
        UserError: if there is none, or none that can be read.
    """
    if not any(file for pattern in VOCABULARIES for file in folder.glob(pattern)):
        raise UserError(  # transformers would make one that knows no word
            "no tokenizer", key="backbone.pretrained", found=folder, expected="one of " + ", ".join(VOCABULARIES)
        )
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"no tokenizer ({_first_line(error)})", key="backbone.pretrained", found=folder) from error


def _first_line(error: Exception) -> str:
    return next(line for line in [*str(error).splitlines(), type(error).__name__] if line.strip())
