"""A tiny random language model, and answers of every kind: what real ones are like, without their size."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from twin_merging.evaluation.exams import Exam
from twin_merging.tasks.generation import Request


def byte_tokenizer(vocabulary: int = 270) -> PreTrainedTokenizerFast:
    """Bytes and a few merges, so that any text is tokens; begins a text with a special token, as LLaMA's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"])
    tokenizer.train_from_iterator(["Answer: A Answer: B Answer: C Answer: D Question: the of"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def tiny_llama(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> LlamaForCausalLM:
    """Random weights, large enough that its likeliest tokens differ from prompt to prompt."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16384, initializer_range=0.5,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@torch.inference_mode()
def complete(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, requests: Sequence[Request]) -> list[str]:
    """Greedy completions, cut before the first stop."""
    texts = []
    for request in requests:
        inputs = tokenizer(request.prompt, return_tensors="pt", return_token_type_ids=False)
        tokens = model.generate(**inputs, max_new_tokens=min(request.max_new_tokens, 24), do_sample=False)
        text = tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for stop in request.stop:
            text = text.split(stop)[0]
        texts.append(text)
    return texts


def answers_of_every_kind(exam: Exam, seed: int = 0) -> list[str]:
    """Right, wrong, empty, blank and malformed answers, in a random order that is the same each time."""
    draw = random.Random(seed)
    answers = []
    for question in exam.questions:
        reference = draw.choice(question.references)
        if question.choices is None:
            words = reference.split()
            half = " ".join(words[: len(words) // 2 + 1])
            kinds = [
                reference,
                f"  {reference}\n",
                half,
                reference.upper(),
                " ".join(words[::-1]),
                "",
                "  ",
                "So 1,234.50",
            ]
            kinds += [
                f"It is {words[-1]}",
                f"It is 9 {words[-1]}",
                "-7",
                ",",
                "the, a an",
                question.request.prompt[-200:],
            ]
        else:
            right = [letter for letter, text in question.choices.items() if text in question.references]
            kinds = [
                f" {right[0]}",
                right[-1],
                f"{right[0]}\n",
                *question.choices,
                *question.choices,
                "",
                " ",
                "\n",
                "Z",
            ]
            kinds += [right[0].lower(), f"{right[0]}.", f"({right[0]})", question.choices[right[0]], f"{right[0]} B"]
        answers.append(draw.choice(kinds))
    return answers
