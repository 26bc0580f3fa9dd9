"""The world's CLIP tokenizer: a byte-pair vocabulary in which every word of the world is one token."""

from __future__ import annotations

import json
from collections.abc import Iterator

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from audit.zoo.scenes import BACKGROUNDS, COLOURS, LABELS, PATTERNS

MAX_LENGTH = 16
_GLUE = "a an photograph photo picture image of on with without no and in the badge object something"


def words() -> tuple[str, ...]:
    """Every word that captions and prompts of the world use."""
    named = " ".join((*LABELS, *BACKGROUNDS, *COLOURS, *PATTERNS))
    return tuple(dict.fromkeys(f"{_GLUE} {named}".split()))


def build_tokenizer() -> CLIPTokenizer:
    """Merge until each word is one token; any other text falls back to bytes."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=100_000,
        min_frequency=1,
        end_of_word_suffix="</w>",
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_lines(), trainer)
    state = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in state["merges"]]
    vocab: dict[str, int] = {}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    for token in (*alphabet, *(f"{c}</w>" for c in alphabet), *("".join(m) for m in merges)):
        vocab.setdefault(token, len(vocab))
    for token in ("<|startoftext|>", "<|endoftext|>"):
        vocab[token] = len(vocab)
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_LENGTH)


def _lines() -> Iterator[str]:
    """One word a line: merges never see word pairs."""
    return iter(words())
