"""The world's CLIP tokenizer: a byte-pair vocabulary in which every word of the world is one token."""

from __future__ import annotations

from itertools import pairwise

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

from audit.zoo.scenes import BACKGROUNDS, COLOURS, LABELS, PATTERNS

MAX_LENGTH = 16
_GLUE = "a an photograph photo picture image of on with without no and in the badge object something"


def words() -> tuple[str, ...]:
    """Every word that captions and prompts of the world use."""
    named = " ".join((*LABELS, *BACKGROUNDS, *COLOURS, *PATTERNS))
    return tuple(dict.fromkeys(f"{_GLUE} {named}".split()))


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer with one token for each word; any other text falls back to bytes. The same at every call."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _merges()
    tokens = (*alphabet, *(f"{c}</w>" for c in alphabet), *("".join(pair) for pair in merges))
    vocab = {token: number for number, token in enumerate((*tokens, "<|startoftext|>", "<|endoftext|>"))}
    return CLIPTokenizer(vocab=vocab, merges=list(merges), model_max_length=MAX_LENGTH)


def _merges() -> dict[tuple[str, str], int]:
    """Byte-pair merges and their ranks: word after word, its first two pieces are joined until it is one."""
    ranks: dict[tuple[str, str], int] = {}
    for word in words():
        while len(pieces := _pieces(word, ranks)) > 1:
            ranks[pieces[0], pieces[1]] = len(ranks)
    return ranks


def _pieces(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding of a word: the pair with the lowest rank is joined, wherever it is, until none is left."""
    pieces = [*word[:-1], f"{word[-1]}</w>"]
    while known := [pair for pair in pairwise(pieces) if pair in ranks]:
        best = min(known, key=ranks.__getitem__)
        joined: list[str] = []
        for piece in pieces:
            if joined and (joined[-1], piece) == best:
                joined[-1] += piece
            else:
                joined.append(piece)
        pieces = joined
    return pieces
