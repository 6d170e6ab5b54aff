"""A group's prompt through the model once, its images included, instead of once for each completion.

What a completion's tokens see of their prompt does not depend on the completion: attention is causal, so the prompt's
keys and values are the same for all G completions of a group, and so is what the vision tower makes of its images.
They are computed once, and every completion attends to them; backward, their gradients are the sum over the group by
the chain rule. Nothing is approximated: log-probabilities, entropies and gradients are those of G separate rows up to
the rounding of another order of summation.

One call of the model does it, on one row that holds no padding::

    prompt 1 | prompt 2 | last token of 1, completion | last token of 1, completion | last token of 2, completion | ...

A prompt stands there without its last token, which begins each of its completions instead: it predicts another token in
each. Every layer but attention treats tokens one by one, and so may run on such a row; attention is told by a `Layout`
which keys a token sees, and positions are those that the tokens have in their own row (M-RoPE, from the model's own
rule). Shapes: K prompts, N completions, P prompt tokens and C completion tokens after padding, L tokens in the packed
row, H heads, D values a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLAttention, Qwen2_5_VLModel
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLAttention, Qwen2VLModel

KNOWN_MODELS = (Qwen2VLModel, Qwen2_5_VLModel)
"""The architectures whose positions, image placeholders and attention are known to be as this module needs them."""

_TEXT_ATTENTION = (Qwen2VLAttention, Qwen2_5_VLAttention)
_IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The prompts of a micro-batch, each once."""

    input_ids: torch.Tensor
    """[K, P], padded on the left."""
    mask: torch.Tensor
    """[K, P], 1 where there is a token."""
    pixel_values: torch.Tensor | None = None
    """Patches of all images, prompt after prompt; None where no prompt has one."""
    image_grid_thw: torch.Tensor | None = None
    """[images, 3], patches of each image in time, height and width."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the tokens of a packed row stand, and which of them see which."""

    prompt_lengths: torch.Tensor
    """[K], without the last token."""
    own_lengths: torch.Tensor
    """[N], with the prompt's last token."""
    prompt_of: torch.Tensor
    """[N], the prompt of each completion."""

    @cached_property
    def num_prompt_tokens(self) -> int:
        """Where the completions begin in the row."""
        return int(self.prompt_lengths.sum())

    @cached_property
    def prompt_mask(self) -> torch.Tensor:
        """[K, P], True where a prompt has a token; padded on the right."""
        return _filled(self.prompt_lengths)

    @cached_property
    def own_mask(self) -> torch.Tensor:
        """[N, C], likewise for what a completion has of its own."""
        return _filled(self.own_lengths)

    @cached_property
    def prompt_places(self) -> torch.Tensor:
        """[K * P], where each token stands in the row; a padded place borrows another token, which nobody looks at."""
        return _places(self.prompt_lengths, self.prompt_mask)

    @cached_property
    def own_places(self) -> torch.Tensor:
        """[N * C], likewise for what completions have of their own."""
        return _places(self.own_lengths, self.own_mask) + self.num_prompt_tokens

    @cached_property
    def padded_places(self) -> torch.Tensor:
        """[L], where each token of the row stands among the K * P + N * C padded ones."""
        return torch.cat([self.prompt_mask.flatten(), self.own_mask.flatten()]).nonzero()[:, 0]

    @cached_property
    def own_sees(self) -> torch.Tensor:
        """[N, 1, C, P + C], True where a completion's token sees a token of its prompt or of its own."""
        num_own = self.own_mask.shape[1]
        prompt = self.prompt_mask[self.prompt_of][:, None, None].expand(-1, 1, num_own, -1)
        causal = torch.ones(num_own, num_own, dtype=torch.bool, device=prompt.device).tril()
        return torch.cat([prompt, causal.expand(len(prompt), 1, -1, -1)], dim=-1)

    @cached_property
    def segments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """[L] twice: the prompt that a token belongs to, and its completion, counted from 1; 0 in a prompt."""
        prompts = torch.arange(len(self.prompt_lengths), device=self.prompt_of.device)
        own = torch.arange(1, len(self.own_lengths) + 1, device=self.prompt_of.device)
        prompt_of = torch.cat(
            [prompts.repeat_interleave(self.prompt_lengths), self.prompt_of.repeat_interleave(self.own_lengths)]
        )
        completion = torch.cat([prompt_of.new_zeros(self.num_prompt_tokens), own.repeat_interleave(self.own_lengths)])
        return prompt_of, completion

    @cached_property
    def block_mask(self) -> BlockMask:
        """Which token of the row sees which, as FlexAttention takes it."""
        prompt_of, completion = self.segments

        def sees(_batch: Any, _head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            is_same = completion[query] == completion[key]
            is_prompt = completion[key] == 0
            return (query >= key) & (prompt_of[query] == prompt_of[key]) & (is_same | is_prompt)

        size = len(prompt_of)
        return create_block_mask(sees, B=None, H=None, Q_LEN=size, KV_LEN=size, device=str(prompt_of.device))

    @cached_property
    def variable_lengths(self) -> tuple[torch.Tensor, dict[str, Any]]:
        """What FlashAttention's kernel of variable lengths takes.

        The keys are places in the row, [tokens seen]: of each prompt its own tokens, of each completion those of its
        prompt and its own. Where there are more keys than queries, the kernel lets the last see all.
        """
        prompts = self.prompt_places.view_as(self.prompt_mask)
        own = self.own_places.view_as(self.own_mask)
        seen = torch.cat([prompts[self.prompt_of], own], dim=1)
        seen_mask = torch.cat([self.prompt_mask[self.prompt_of], self.own_mask], dim=1)
        keys = torch.cat([prompts[self.prompt_mask], seen[seen_mask]])
        query_lengths = torch.cat([self.prompt_lengths, self.own_lengths])
        key_lengths = torch.cat([self.prompt_lengths, self.prompt_lengths[self.prompt_of] + self.own_lengths])
        return keys, {
            "cu_seq_lens_q": _bounds(query_lengths),
            "cu_seq_lens_k": _bounds(key_lengths),
            "max_length_q": int(query_lengths.max()),
            "max_length_k": int(key_lengths.max()),
        }


def unknown(model: torch.nn.Module) -> str | None:
    """Why a model's batches cannot be rearranged here; None where they can.

    Args:
        model: without the wrappers of a trainer; with those of peft, or without.
    """
    core = core_of(model)
    if type(getattr(core, "model", None)) not in KNOWN_MODELS:
        return f"{type(core).__name__} is not known to it"
    config = core.config.get_text_config()
    if set(config.layer_types) != {"full_attention"}:
        return "layers with a sliding window are not known to it"
    if config._attn_implementation not in _KERNELS:
        return f"attention {config._attn_implementation!r} is not known to it, {sorted(_KERNELS)} are"
    return None


def unshared(model: torch.nn.Module) -> str | None:
    """Why a model's prompts cannot be shared within a group: it is unknown, or draws what it drops of each row anew.

    Args:
        model: as of `unknown`.
    """
    if has_dropout(model):
        return unknown(model) or "what dropout leaves out must be drawn anew for each completion"
    return unknown(model)


def has_dropout(model: torch.nn.Module) -> bool:
    """Whether a layer drops something in training, by a module of its own or by a rate that it keeps for itself."""
    for module in model.modules():
        rates = [value for name, value in vars(module).items() if "drop" in name and isinstance(value, float)]
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            rates.append(module.p)
        if any(rate > 0 for rate in rates):
            return True
    return False


def core_of(model: Any) -> Any:
    """The model of transformers inside peft's."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def pack(
    core: Any, prompts: Prompts, completion_ids: torch.Tensor, completion_mask: torch.Tensor, prompt_of: torch.Tensor
) -> dict[str, Any]:
    """The arguments of one call of the model for all completions of a micro-batch, which must be its next.

    Args:
        core: the model of transformers; see `core_of`.
        prompts: K prompts, each with at least one completion.
        completion_ids: [N, C], padded on the right.
        completion_mask: [N, C], 1 where a token is scored; a completion may have none.
        prompt_of: [N], the prompt of each completion.

    Returns:
        Arguments with ``labels`` [1, tokens behind the prompts], which name the completions' tokens in the order of the
        rows and nothing else; the head is given as much of the row.

    Raises:
        ValueError: a prompt ends with an image, whose last token then stands for several.
    """
    ids, mask = prompts.input_ids, prompts.mask.bool()
    image = ids == core.config.image_token_id
    if bool(image[:, -1].any()):
        raise ValueError("a prompt that ends with an image cannot be shared")
    _teach(core.config.get_text_config()._attn_implementation)
    positions, _ = core.model.get_rope_index(
        ids, mm_token_type_ids=image.int(), image_grid_thw=prompts.image_grid_thw, attention_mask=prompts.mask
    )
    prefix = mask.clone()
    prefix[:, -1] = False
    own = torch.cat([mask.new_ones(len(completion_ids), 1), completion_mask.bool()], dim=1)
    own_ids = torch.cat([ids[prompt_of, -1:], completion_ids], dim=1)
    # The next position is one past the largest: an image's tokens share positions, so it is not the number of tokens.
    after = positions.amax(dim=(0, 2)) + 1
    steps = torch.arange(completion_ids.shape[1], device=ids.device)
    following = (after[prompt_of, None] + steps).expand(3, -1, -1)
    own_positions = torch.cat([positions[:, prompt_of, -1:], following], dim=2)
    labels = own_ids.masked_fill(~own, _IGNORED)
    labels[:, 0] = _IGNORED

    _keep_prompts_from_head(core)
    input_ids = torch.cat([ids[prefix], own_ids[own]])
    arguments = {
        "input_ids": input_ids[None],
        "attention_mask": {"full_attention": None},  # said by the layout
        "position_ids": torch.cat([positions[:, prefix], own_positions[:, own]], dim=1)[:, None],
        "labels": labels[own][None],
        "layout": Layout(prompt_lengths=prefix.sum(1), own_lengths=own.sum(1), prompt_of=prompt_of),
    }
    if prompts.pixel_values is not None:
        arguments["pixel_values"] = prompts.pixel_values
        arguments["image_grid_thw"] = prompts.image_grid_thw
        arguments["mm_token_type_ids"] = (input_ids == core.config.image_token_id).int()[None]
    return arguments


def unpack(values: torch.Tensor, labels: torch.Tensor, completion_mask: torch.Tensor) -> torch.Tensor:
    """What a model with trl's fused head says of each label but the first, as [N, C]; 0 where nothing is scored."""
    scored = values[0, labels[0, 1:] != _IGNORED]
    return scored.new_zeros(completion_mask.shape).masked_scatter(completion_mask.bool(), scored)


def _filled(lengths: torch.Tensor) -> torch.Tensor:
    """[rows, longest], True for as many as a row is long; one place at least."""
    return torch.arange(max(1, int(lengths.max())), device=lengths.device) < lengths[:, None]


def _places(lengths: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The places of rows that stand one after another, as many for each as the mask has."""
    starts = lengths.cumsum(0) - lengths
    return ((starts[:, None] + torch.arange(mask.shape[1], device=mask.device)) * mask).flatten()


def _bounds(lengths: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()


def _by_sdpa(
    attention: Callable[..., Any], module: Any, query: Any, key: Any, value: Any, layout: Layout, **arguments: Any
) -> torch.Tensor:
    """Prompts among themselves, then completions with their prompts before them: two calls, each padded."""
    query, key, value = (one[0] for one in (query, key, value))  # [H, L, D]

    def padded(one: torch.Tensor, places: torch.Tensor, rows: int) -> torch.Tensor:
        return one.index_select(1, places).unflatten(1, (rows, -1)).transpose(0, 1)

    prompts = [padded(one, layout.prompt_places, len(layout.prompt_lengths)) for one in (query, key, value)]
    own = [padded(one, layout.own_places, len(layout.own_lengths)) for one in (query, key, value)]
    # A prompt is padded on the right here, so that no token of it sees the padding.
    of_prompts, _ = attention(module, *prompts, None, **arguments)
    keys, values = (
        torch.cat([of_prompt[layout.prompt_of], of_own], dim=2)
        for of_prompt, of_own in zip(prompts[1:], own[1:], strict=True)
    )
    of_own, _ = attention(module, own[0], keys, values, layout.own_sees, **arguments)
    return torch.cat([of_prompts.flatten(0, 1), of_own.flatten(0, 1)])[layout.padded_places][None]


def _by_flex(
    attention: Callable[..., Any], module: Any, query: Any, key: Any, value: Any, layout: Layout, **arguments: Any
) -> torch.Tensor:
    """One call on the row as it is; blocks that no token sees are left out."""
    return attention(module, query, key, value, layout.block_mask, **arguments)[0]


def _by_flash(
    attention: Callable[..., Any], module: Any, query: Any, key: Any, value: Any, layout: Layout, **arguments: Any
) -> torch.Tensor:
    """One call of the kernel for rows of different lengths; the keys of a prompt are repeated for its completions."""
    places, lengths = layout.variable_lengths
    return attention(module, query, key[:, :, places], value[:, :, places], None, **{**arguments, **lengths})[0]


_KERNELS: Mapping[str, Callable[..., torch.Tensor]] = {
    "sdpa": _by_sdpa,
    "flex_attention": _by_flex,
    "flash_attention_2": _by_flash,
    "flash_attention_3": _by_flash,
}


@dataclass(frozen=True, kw_only=True)
class _Attention:
    """One of transformers' attention functions that also understands a layout; without one it is what it was."""

    function: Callable[..., Any]
    kernel: Callable[..., torch.Tensor]

    def __call__(self, module: Any, *tensors: Any, layout: Layout | None = None, **arguments: Any) -> Any:
        # The vision tower, whose blocks are handed every argument, sees each image on its own.
        if layout is None or not isinstance(module, _TEXT_ATTENTION):
            return self.function(module, *tensors, **arguments)
        return self.kernel(self.function, module, *tensors[:3], layout, **arguments), None


def _teach(name: str) -> None:
    """Lets transformers' attention of that name understand layouts, for every model of this process."""
    function = ALL_ATTENTION_FUNCTIONS[name]
    if not isinstance(function, _Attention):
        AttentionInterface.register(name, _Attention(function=function, kernel=_KERNELS[name]))


def _keep_prompts_from_head(core: Any) -> None:
    """Lets the head see nothing but completions in the call that is to come: trl 1.16's would score prompts on a CPU.

    For this call alone, because a model with hooks is one that others must take as they find it: our decoding would.
    """

    def cut(_model: Any, _args: Any, kwargs: Mapping[str, Any], output: Any) -> Any:
        handle.remove()
        if (layout := kwargs.get("layout")) is not None:  # or it is another call, and the one meant never came
            output.last_hidden_state = output.last_hidden_state[:, layout.num_prompt_tokens :]
        return output

    handle = core.model.register_forward_hook(cut, with_kwargs=True)
