"""A quantized GGUF file as an ordinary Hugging Face folder, whose weights can be merged and fine-tuned."""

from __future__ import annotations

from pathlib import Path

from twin_merging.errors import UserError


def convert(file: Path, folder: Path) -> None:
    """Dequantize a causal language model and write its config, weights (safetensors, bfloat16) and tokenizer.

    bfloat16 has 8 significant bits, more than any quantization whose blocks share a scale, at half the size of float32. A
    GGUF's chat template becomes the tokenizer's.

    Args:
        file: a GGUF of an architecture that transformers knows.
        folder: which is made.

    Raises:
        UserError: if the file cannot be read as such.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise UserError(f"no GGUF model that can be read ({error})", key=str(file)) from error
    config = read.config
    del config.quantization_config  # with which transformers saves nothing
    model = type(read)(config)
    model.load_state_dict(read.state_dict())
    model.bfloat16()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes for its owner alone, and an asset folder may serve a group
