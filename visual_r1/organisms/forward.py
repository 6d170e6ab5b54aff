"""A forward pass over an organism's own weights that computes an image and its preamble once for many texts about it.

Hugging Face's forward is the reference (a test holds the two together); this one exists because nano is pretrained on a
CPU in minutes. Letters: N scenes, I image tokens of a scene, D documents, P tokens of the shared head, L tokens of a
document, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import isqrt

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor
from transformers import Qwen2VLForConditionalGeneration

_PATCH = 14
# CLIP's normalisation, which Qwen2-VL's image processor applies.
_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


@dataclass(frozen=True)
class Head:
    """The tokens that all documents about a scene begin with, image included."""

    ids: tuple[int, ...]
    image_start: int
    """Index of the first image token."""
    tokens_per_side: int
    """Of the image, which is square."""

    @property
    def num_image_tokens(self) -> int:
        """Of the one image."""
        return self.tokens_per_side**2

    @property
    def image_end(self) -> int:
        """Index after ``<|vision_end|>``: what a caption sees of the head."""
        return self.image_start + self.num_image_tokens + 1

    def next_position(self, length: Tensor) -> Tensor:
        """M-RoPE position of the token after the first ``length`` ones, which include the image; any shape."""
        # An image of 4x4 tokens takes up four positions, not sixteen.
        return length - self.num_image_tokens + self.tokens_per_side

    def positions(self, device: torch.device) -> Tensor:
        """M-RoPE positions (time, height, width) of the head's tokens, ``[3, P]``."""
        text = torch.arange(len(self.ids), device=device)
        text[self.image_start + self.num_image_tokens :] -= self.num_image_tokens - self.tokens_per_side
        positions = text.expand(3, -1).clone()
        image = slice(self.image_start, self.image_start + self.num_image_tokens)
        index = torch.arange(self.num_image_tokens, device=device)
        positions[0, image] = self.image_start
        positions[1, image] = self.image_start + index // self.tokens_per_side
        positions[2, image] = self.image_start + index % self.tokens_per_side
        return positions


@dataclass(frozen=True)
class HeadStates:
    """What the documents need of a forwarded head; gradients flow through it."""

    head: Head
    keys: list[Tensor]
    """One a layer, ``[N, kv heads, P, head size]``, rotated."""
    values: list[Tensor]


def to_patches(pictures: Sequence[Image]) -> Tensor:
    """Pixels in Qwen2-VL's order (blocks of 2x2 patches), float ``[N, 4I, 588]``; for square pictures of one size.

    The processor repeats each frame for its temporal patches of two; here the kernel is summed over time instead.
    """
    pixels = np.stack([np.asarray(picture) for picture in pictures]).astype(np.float32) / 255
    pixels = (pixels - _MEAN) / _STD
    tokens = pixels.shape[1] // (2 * _PATCH)
    blocks = pixels.reshape(len(pictures), tokens, 2, _PATCH, tokens, 2, _PATCH, 3)
    ordered = blocks.transpose(0, 1, 4, 2, 5, 7, 3, 6).reshape(len(pictures), 4 * tokens**2, 3 * _PATCH**2)
    return torch.from_numpy(np.ascontiguousarray(ordered))


class FastForward:
    """Forward passes over the weights of a model; holds no weights of its own."""

    def __init__(self, model: Qwen2VLForConditionalGeneration, *, max_positions: int = 512) -> None:
        self.model = model
        self.device = model.device
        """Where all tensors that go in must lie, patches aside."""
        self.visual = model.model.visual
        self.text = model.model.language_model
        config = model.config.text_config
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_size = config.hidden_size // config.num_attention_heads
        self.eps = config.rms_norm_eps
        self._text_cos, self._text_sin = self._rotary(torch.arange(max_positions, device=self.device).expand(3, -1))
        self._vision_rotary = cache(self._compute_vision_rotary)

    def images(self, patches: Tensor) -> Tensor:
        """Image tokens ``[N, I, H]`` of patches ``[N, 4I, 588]``, which may lie on the CPU."""
        count, num_patches, visual, heads = *patches.shape[:2], self.visual, self.visual.config.num_heads
        cos, sin = self._vision_rotary(isqrt(num_patches))
        kernel = visual.patch_embed.proj.weight.sum(2).reshape(visual.config.embed_dim, -1)
        hidden = F.linear(patches.to(self.device), kernel)
        for block in visual.blocks:
            mixed = block.attn.qkv(block.norm1(hidden)).view(count, num_patches, 3, heads, -1)
            query, key, value = mixed.permute(2, 0, 3, 1, 4)
            query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
            attended = _attention(query, key, value).transpose(1, 2).reshape(count, num_patches, -1)
            hidden = hidden + block.attn.proj(attended)
            hidden = hidden + block.mlp(block.norm2(hidden))
        return visual.merger(hidden.reshape(count * num_patches, -1)).view(count, num_patches // 4, -1)

    def head(self, head: Head, images: Tensor) -> HeadStates:
        """Forwards a head once a scene; ``images`` is ``[N, I, H]``."""
        ids = torch.tensor(head.ids, device=self.device)
        embedded = self.text.embed_tokens(ids).expand(len(images), -1, -1)
        start, end = head.image_start, head.image_start + head.num_image_tokens
        embedded = torch.cat([embedded[:, :start], images.to(embedded.dtype), embedded[:, end:]], dim=1)
        cos, sin = self._rotary(head.positions(self.device))
        states = HeadStates(head, [], [])
        self._layers(embedded, cos, sin, collect=states)
        return states

    def documents(self, states: HeadStates, owners: Tensor, ids: Tensor, visible: Tensor) -> Tensor:
        """Final hidden states ``[D, L, H]`` of documents that go on where a head stops.

        Args:
            states: The forwarded head.
            owners: The scene of each document, ``[D]``.
            ids: Token ids, padded on the right, ``[D, L]``.
            visible: How many tokens of the head each document sees, ``[D]``: all, or up to the image's end.
        """
        length, shared = ids.shape[1], len(states.head.ids)
        positions = states.head.next_position(visible)[:, None] + torch.arange(length, device=self.device)
        cos, sin = self._text_cos[positions][:, None], self._text_sin[positions][:, None]
        sees_head = (torch.arange(shared, device=self.device) < visible[:, None])[:, None].expand(-1, length, -1)
        causal = torch.ones(length, length, dtype=torch.bool, device=self.device).tril().expand(len(ids), -1, -1)
        mask = torch.cat([sees_head, causal], dim=2)[:, None]
        past = [(key[owners], value[owners]) for key, value in zip(states.keys, states.values, strict=True)]
        return self._layers(self.text.embed_tokens(ids), cos, sin, past=past, mask=mask)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits in float32."""
        return self.model.lm_head(hidden).float()

    def _layers(
        self,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        *,
        past: list[tuple[Tensor, Tensor]] | None = None,
        mask: Tensor | None = None,
        collect: HeadStates | None = None,
    ) -> Tensor:
        """All decoder layers; causal unless a mask ``[D, 1, L, P + L]`` says which keys each token sees."""
        size = (hidden.shape[-1],)
        for index, layer in enumerate(self.text.layers):
            attention, mlp = layer.self_attn, layer.mlp
            normed = F.rms_norm(hidden, size, layer.input_layernorm.weight, self.eps)
            query = self._split(attention.q_proj(normed), self.num_heads)
            key = self._split(attention.k_proj(normed), self.num_kv_heads)
            value = self._split(attention.v_proj(normed), self.num_kv_heads)
            query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
            if collect is not None:
                collect.keys.append(key)
                collect.values.append(value)
            if past is not None:
                key = torch.cat([past[index][0], key], dim=2)
                value = torch.cat([past[index][1], value], dim=2)
            repeats = self.num_heads // self.num_kv_heads
            key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
            attended = _attention(query, key, value, attn_mask=mask, is_causal=mask is None)
            hidden = hidden + attention.o_proj(attended.transpose(1, 2).flatten(2))
            normed = F.rms_norm(hidden, size, layer.post_attention_layernorm.weight, self.eps)
            hidden = hidden + mlp.down_proj(F.silu(mlp.gate_proj(normed)) * mlp.up_proj(normed))
        return F.rms_norm(hidden, size, self.text.norm.weight, self.eps)

    def _split(self, projected: Tensor, heads: int) -> Tensor:
        return projected.unflatten(-1, (heads, self.head_size)).transpose(1, 2)

    def _rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[L, head size]`` of M-RoPE positions ``[3, L]``."""
        cos, sin = self.text.rotary_emb(torch.zeros(1, device=self.device), positions[:, None])
        return cos[0], sin[0]

    def _compute_vision_rotary(self, patches: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[4I, head size]`` of a picture of ``patches`` a side, in Qwen2-VL's block order."""
        side = torch.arange(patches, device=self.device)
        frequencies = self.visual.rotary_pos_emb.inv_freq
        grid = torch.stack([side[:, None].expand(-1, patches), side.expand(patches, -1)], dim=-1)
        blocks = grid.view(patches // 2, 2, patches // 2, 2, 2).transpose(1, 2).reshape(-1, 2)
        angles = (blocks[..., None] * frequencies).flatten(1)
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = states.chunk(2, dim=-1)
    return (states * cos + torch.cat([-second, first], dim=-1) * sin).to(states.dtype)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, *, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    # On CPU the backward of bfloat16 flash attention is five times slower than float32's (torch 2.13). Elsewhere it is
    # float32 too, so that an organism is the same arithmetic wherever it is trained.
    with torch.autocast(query.device.type, enabled=False):
        return F.scaled_dot_product_attention(
            query.float(), key.float(), value.float(), attn_mask=attn_mask, is_causal=is_causal
        )
