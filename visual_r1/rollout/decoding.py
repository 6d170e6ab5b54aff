"""A token more for many completions at once: what a rollout repeats as often as its longest completion has tokens.

The prompts go through the model's own forward. After them, Qwen2-VL and Qwen2.5-VL are taken layer by layer: around the
matrix products of a small model, their own forward copies all keys and values to append one token's, copies them again
for each query head that shares them, and makes masks and rotations anew. Here a key is written where it will be read.
Each embedding, linear layer, norm and head is the model's own module, with its adapters. Every other model takes its
own forward for each token: the same numbers, more slowly.

Shapes: B prompts, G completions each, N completions that go on, P prompt tokens after padding, V vocabulary, K heads of
keys and of values, each of size D and shared by R query heads, S places for tokens.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any, Protocol

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from tqdm.auto import tqdm

from visual_r1 import distributed

_ROOM = 128
"""Tokens of a completion for which there is room at first; then the room doubles."""


class Rows(Protocol):
    """Completions that go on, one a row, in order."""

    def keep(self, kept: torch.Tensor) -> None:
        """Lets all rows go but those of the indices `kept` [N], which ascend."""
        ...

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """Adds a token to each row, [N], and returns the logits of the next, [N, V]."""
        ...


def begin(model: Any, inputs: Any, *, num_generations: int, max_length: int) -> tuple[torch.Tensor, Rows]:
    """Encodes each prompt with its images once for all of its completions.

    Args:
        model: of a policy, with or without adapters.
        inputs: B prompts from the processor, padded on the left.
        num_generations: G; the rows of a prompt stand together.
        max_length: tokens that a completion may have.

    Returns:
        The logits of the first token, [B x G, V], and the rows.
    """
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    positions = _prompt_positions(core, inputs)
    autocast = _Autocast()
    watching = core.model.language_model.register_forward_pre_hook(autocast)
    try:
        outputs = model(**inputs, position_ids=positions, use_cache=True, logits_to_keep=1)
    finally:
        watching.remove()
    mask = inputs["attention_mask"].repeat_interleave(num_generations, dim=0)
    # The next position is one past the largest: an image's tokens share positions, so it is not the token count.
    next_position = (positions.amax(dim=(0, 2)) + 1).repeat_interleave(num_generations)
    cached = outputs.past_key_values
    rows: Rows
    if reason := _unknown(core):
        _say_once(f"{reason}: each token of a rollout takes the model's own forward, which is slower and as exact")
        cached.batch_repeat_interleave(num_generations)
        rows = _ForwardRows(model, cached, mask, next_position)
    else:
        rows = _LayerRows(core, autocast, cached, mask, next_position, max_length)
    return outputs.logits[:, -1].repeat_interleave(num_generations, dim=0), rows


class _Autocast:
    """A hook that sees the precision around the layers: accelerate puts autocast around the outermost forward."""

    def __call__(self, module: torch.nn.Module, _inputs: Any) -> None:
        self._device = next(module.parameters()).device.type
        self._dtype = torch.get_autocast_dtype(self._device)
        self._enabled = torch.is_autocast_enabled(self._device)

    def again(self) -> torch.autocast:
        """The same precision for a block."""
        return torch.autocast(self._device, self._dtype, self._enabled)


class _ForwardRows:
    """Rows that the model's own forward continues."""

    def __init__(self, model: Any, cached: Any, mask: torch.Tensor, next_position: torch.Tensor) -> None:
        self._model, self._cache = model, cached
        self._mask, self._next_position = mask, next_position

    def keep(self, kept: torch.Tensor) -> None:
        """See `Rows.keep`."""
        self._cache.batch_select_indices(kept)
        self._mask, self._next_position = self._mask[kept], self._next_position[kept]

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """See `Rows.logits`."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        outputs = self._model(
            input_ids=tokens[:, None],
            attention_mask=self._mask,
            position_ids=self._next_position[None, :, None].expand(3, -1, -1),
            past_key_values=self._cache,
            use_cache=True,
        )
        self._next_position = self._next_position + 1
        return outputs.logits[:, -1]


class _LayerRows:
    """Rows that are continued layer by layer, over keys and values [N, K, S, D] that are written in place.

    A row lies in a slot. When rows go, those of the last slots move to the slots that are free, and no other is copied.
    """

    def __init__(
        self,
        core: Any,
        autocast: _Autocast,
        cached: Any,
        mask: torch.Tensor,
        next_position: torch.Tensor,
        max_length: int,
    ) -> None:
        self._text, self._head, self._autocast = core.model.language_model, core.lm_head, autocast
        num_rows, self._num_prompt = mask.shape
        self._num_written, self._max_length = self._num_prompt, max_length
        self._slots = torch.arange(num_rows, device=mask.device)
        room = min(_ROOM, max_length)
        self._layers = [
            (layer, *(_with_room(states, num_rows, room) for states in (cache.keys, cache.values)))
            for layer, cache in zip(self._text.layers, cached.layers, strict=True)
        ]
        some_key = cached.layers[0].keys
        # What is added to each place's score, [N, 1, 1, S].
        is_seen = pad(mask, (0, max_length), value=1).bool()[:, None, None]
        self._bias = None if is_seen.all() else some_key.new_zeros(is_seen.shape).masked_fill_(~is_seen, -torch.inf)
        # A completion's token has one position for time, height and width, so a table of rotations serves every row.
        first, last = int(next_position.min()), int(next_position.max()) + max_length
        table = torch.arange(first, last, device=mask.device).expand(3, 1, -1)
        self._cos, self._sin = (one[0, :, None] for one in self._text.rotary_emb(some_key, table))
        self._sin[..., : self._sin.shape[-1] // 2].neg_()  # the sign of a value's partner, see `_rotated`
        self._rotation = next_position - first

    def keep(self, kept: torch.Tensor) -> None:
        """See `Rows.keep`."""
        num_rows, slots = len(kept), self._slots[kept]
        moves = slots >= num_rows
        is_free = torch.ones(num_rows, dtype=torch.bool, device=slots.device)
        is_free[slots[~moves]] = False
        origin, target = slots[moves], is_free.nonzero()[:, 0]
        slots[moves] = target
        self._slots = slots
        for _, keys, values in self._layers:
            for states in (keys, values):
                states[target, :, : self._num_written] = states[origin, :, : self._num_written]
        self._rotation[target] = self._rotation[origin]
        if self._bias is not None:
            self._bias[target] = self._bias[origin]

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """See `Rows.logits`."""
        num_rows = len(tokens)
        if self._num_written == self._layers[0][1].shape[2]:
            num_added = self._num_written - self._num_prompt
            room = min(num_added, self._max_length - num_added)
            for number, (layer, keys, values) in enumerate(self._layers):  # one layer at a time lies there twice
                wider = [_with_room(states[:num_rows], num_rows, room) for states in (keys, values)]
                self._layers[number] = (layer, *wider)
                del keys, values
        self._num_written += 1
        rotation = self._rotation[:num_rows]
        cos, sin = self._cos[rotation], self._sin[rotation]
        rotation += 1
        with self._autocast.again():
            hidden = self._text.embed_tokens(torch.empty_like(tokens).index_copy_(0, self._slots, tokens))
            for layer, keys, values in self._layers:
                states = layer.input_layernorm(hidden)
                hidden = hidden + self._attended(layer.self_attn, states, keys[:num_rows], values[:num_rows], cos, sin)
                hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
            return self._head(self._text.norm(hidden[self._slots]))

    def _attended(
        self,
        attention: Any,
        states: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
    ) -> torch.Tensor:
        """What an attention layer makes of one state a row, [N, width], and of all that were before it."""
        heads = (len(states), -1, attention.head_dim)
        query = _rotated(attention.q_proj(states).view(heads), cos, sin)
        keys[:, :, self._num_written - 1] = _rotated(attention.k_proj(states).view(heads), cos, sin)
        values[:, :, self._num_written - 1] = attention.v_proj(states).view(heads)
        # A single query sees every key, so the R that share a head may stand where a sequence would: [N, K, R, D].
        attended = scaled_dot_product_attention(
            query.view(len(states), keys.shape[1], -1, attention.head_dim),
            keys[:, :, : self._num_written],
            values[:, :, : self._num_written],
            attn_mask=None if self._bias is None else self._bias[: len(states), ..., : self._num_written],
            scale=attention.scaling,
        )
        return attention.o_proj(attended.reshape(len(states), -1))


def _rotated(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of [N, heads, D]; the sign of each value's partner stands in `sin` [N, 1, D]."""
    return states * cos + states.roll(states.shape[-1] // 2, dims=-1) * sin


def _with_room(states: torch.Tensor, num_rows: int, room: int) -> torch.Tensor:
    """A copy of keys or values, each repeated until they are `num_rows`, with places for `room` more tokens."""
    num_prompts, num_heads, length, size = states.shape
    roomy = states.new_empty(num_rows, num_heads, length + room, size)
    roomy.unflatten(0, (num_prompts, -1))[..., :length, :] = states[:, None]
    return roomy


def _prompt_positions(core: Any, inputs: Any) -> torch.Tensor:
    """M-RoPE position ids [3, B, P] (time, height, width), from the model's own rule."""
    positions, _ = core.model.get_rope_index(
        inputs["input_ids"],
        image_grid_thw=inputs.get("image_grid_thw"),
        attention_mask=inputs["attention_mask"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
    )
    return positions


def _unknown(core: Any) -> str | None:
    """Why a model must not be taken layer by layer; None if it may."""
    text = core.model.language_model
    known = _known_forwards()
    for module in (core, core.model, text, *text.layers, *(layer.self_attn for layer in text.layers)):
        name = type(module).__name__
        if type(module).forward not in known:
            return f"{name} is none of Qwen2-VL's or Qwen2.5-VL's modules"
        # A trainer replaces the outermost: accelerate by one with autocast, trl by one that can also make log-probs.
        if module is not core and "forward" in vars(module):
            return f"the forward of {name} has been replaced"
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{name} has hooks"
    if text.has_sliding_layers:
        return "attention sees a window"
    if text.rotary_emb.rope_type != "default":
        return f"rotary embeddings are of type {text.rotary_emb.rope_type}"
    return None


def _known_forwards() -> set[Any]:
    """The forwards that `_LayerRows` does the work of."""
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as newer
    from transformers.models.qwen2_vl import modeling_qwen2_vl as older

    kinds = (
        *(older.Qwen2VLForConditionalGeneration, older.Qwen2VLModel, older.Qwen2VLTextModel),
        *(older.Qwen2VLDecoderLayer, older.Qwen2VLAttention),
        *(newer.Qwen2_5_VLForConditionalGeneration, newer.Qwen2_5_VLModel, newer.Qwen2_5_VLTextModel),
        *(newer.Qwen2_5_VLDecoderLayer, newer.Qwen2_5_VLAttention),
    )
    return {kind.forward for kind in kinds}


@cache
def _say_once(line: str) -> None:
    if distributed.is_main():
        tqdm.write(line, file=sys.stderr)
