"""A checkpoint becomes a policy: model, processor, prompt style; here too are freezing and adapters.

Nothing downstream asks how large the model is or where it came from.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visual_r1 import distributed
from visual_r1.errors import first_line
from visual_r1.examples import Example
from visual_r1.files import read_json, sync_files, write_json, writing
from visual_r1.images import PixelLimits, fit, limits_of
from visual_r1.prompts import PromptStyle, prompt_style

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, ProcessorMixin

_OUR_FILE = "visual_r1.json"
"""What we write beside a trained model: how it was asked and the steps it was trained on, which weights cannot tell."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, or not in the way asked for, with what is wrong and the fix."""


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a policy comes from and how it is asked.

    Checked when it is built, without loading a weight, so that a wrong path fails within a second.

    Raises:
        CheckpointError: the folder is missing or incomplete, holds only pickled weights, or no prompt style is known.
    """

    name: str
    path: str
    """A Hugging Face folder, or a hub id ``organisation/name``."""
    style: str | None = None
    """How to talk to it, ``base`` or ``instruct``; None reads what our own training stored in the folder."""
    prompt: str | None = None
    """The wording, ``clean`` or ``paper``; None reads what is stored, or takes ``clean`` where nothing is."""
    max_pixels: int | None = None
    """Larger images are made smaller, to at most this many pixels; None keeps the checkpoint's own limit."""
    trust_remote_code: bool = False
    dtype: str = "float32"
    """The parameters' type: ``float32`` or ``bfloat16``."""

    def __post_init__(self) -> None:
        if not is_hub_id(self.path):
            _check_folder(Path(self.path))
        _ = self.prompt_style  # refuses an unknown one
        if self.dtype not in ("float32", "bfloat16"):
            raise CheckpointError(f"model.dtype={self.dtype}: unknown, expected float32 or bfloat16")
        if self.max_pixels is not None and self.max_pixels < 1:
            raise CheckpointError(f"model.max_pixels={self.max_pixels}: expected at least 1")

    @property
    def prompt_style(self) -> PromptStyle:
        """How this model is asked, from the config or from the folder.

        Raises:
            CheckpointError: nobody says how, or no such style exists.
        """
        stored = self._stored()
        style = self.style or stored.get("style")
        if style is None:
            raise CheckpointError(
                f"{self.path}: not one of our runs; say how to talk to it, model.style=base or model.style=instruct"
            )
        # A style that the config names is asked in the clean wording, whatever the folder was trained with.
        prompt = self.prompt or (stored.get("prompt") if self.style in (None, stored.get("style")) else None)
        try:
            return prompt_style(style, prompt or "clean")
        except ValueError as error:
            raise CheckpointError(str(error)) from error

    def _stored(self) -> dict[str, str]:
        file = Path(self.path) / _OUR_FILE
        if is_hub_id(self.path) or not file.is_file():
            return {}
        try:
            stored = json.loads(file.read_text())
            return {"style": str(stored["style"]), "prompt": str(stored["prompt"])}
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(
                f'{file}: damaged or of an older version, expected {{"style": "base", "prompt": "clean"}}'
            ) from error


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """Low-rank adapters on the language model's linear layers (LoRA, arXiv 2106.09685)."""

    rank: int
    alpha: int
    dropout: float
    target_modules: str
    """A regular expression over module names; the vision tower's layers must not match unless they are meant."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What is asked, and possibly trained."""

    model: PreTrainedModel
    processor: ProcessorMixin
    style: PromptStyle
    source: ModelSource
    freeze: tuple[str, ...] = ()
    adapter: Adapter | None = None

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @cached_property
    def limits(self) -> PixelLimits:
        """The grid and the sizes of image that the model is given."""
        return limits_of(self.processor, max_pixels=self.source.max_pixels)

    @property
    def context_length(self) -> int:
        """Tokens that prompt and completion may hold together."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    def fitted(self, example: Example) -> Example:
        """The example with its images as the model takes them, so that no engine or trainer resizes them on its own.

        Raises:
            ValueError: an image cannot be brought into the limits, with the example's id.
        """
        try:
            images = tuple(fit(image, self.limits) for image in example.images)
        except ValueError as error:
            raise ValueError(f"{example.id}: {error}") from error
        changed = any(one is not other for one, other in zip(images, example.images, strict=True))
        return replace(example, images=images) if changed else example

    def prompt_length(self, example: Example) -> int:
        """Tokens of an example's prompt, those of its fitted images included."""
        text = self.processor.apply_chat_template(
            self.style.messages(example), add_generation_prompt=True, tokenize=False
        )
        num_image_tokens = sum(self.limits.num_tokens(*image.size) for image in example.images)
        # In the text an image is one placeholder.
        return len(self.tokenizer(text)["input_ids"]) + num_image_tokens - len(example.images)

    def with_style(self, style: PromptStyle) -> Policy:
        """The same model and processor, asked in another style from now on."""
        if style.chat_template is not None:
            self.processor.chat_template = style.chat_template
        return replace(self, style=style)

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a completion: the tokenizer's own, then whatever else the checkpoint declares.

        An instruct checkpoint may stop on a token that its tokenizer does not call the end; ignoring it would count
        everything after as completion (a bug of the paper's released code).
        """
        declared = self.model.generation_config.eos_token_id
        declared = [declared] if isinstance(declared, int) else list(declared or ())
        return tuple(dict.fromkeys([self.tokenizer.eos_token_id, *declared]))

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        """The placeholders of images and videos, which must never be sampled: they would claim features of no image."""
        config = self.model.config
        names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        return tuple(value for name in names if isinstance(value := getattr(config, name, None), int))


def load_policy(source: ModelSource, *, freeze: Iterable[str] = (), adapter: Adapter | None = None) -> Policy:
    """Loads a checkpoint onto the best device, freezes what is to stay, and adds adapters.

    Args:
        source: the checkpoint and its prompt style.
        freeze: any of ``vision`` (the tower with its merger) and ``llm`` (the language model with its head).
        adapter: LoRA's shape; None trains the parameters themselves.

    Raises:
        CheckpointError: the files do not make a vision-language model of a known architecture, or nothing of it would
            be trained, or the adapter fits none of its modules.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText, AutoProcessor

    common: dict[str, Any] = {"trust_remote_code": source.trust_remote_code}
    try:
        with loading_whole():
            model = AutoModelForImageTextToText.from_pretrained(
                source.path, dtype=getattr(torch, source.dtype), use_safetensors=True, **common
            )
        # Left, because completions start where the prompts of a batch end.
        processor = AutoProcessor.from_pretrained(source.path, padding_side="left", **common)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"{source.path}: cannot be loaded as a vision-language model: {first_line(error)}"
        ) from error
    style = source.prompt_style
    if style.chat_template is not None:
        processor.chat_template = style.chat_template
    elif processor.chat_template is None:
        raise CheckpointError(
            f"{source.path}: has no chat template, which model.style={style.name} needs; use model.style=base"
        )
    if torch.cuda.is_available():
        model.cuda()
    freeze = tuple(freeze)
    trained = model if adapter is None else _with_adapter(model, adapter)
    freeze_modules(model, freeze)  # after the adapters: those inside a frozen part stay as they are too
    return Policy(model=trained, processor=processor, style=style, source=source, freeze=freeze, adapter=adapter)


@contextmanager
def loading_whole() -> Generator[None]:
    """Loads weights whole in each process, also where a trainer with ZeRO-3 has been set up in it.

    transformers would load a part of them, which only that trainer can put together.
    """
    from transformers.integrations import deepspeed

    of_trainer = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = of_trainer


def freeze_modules(model: PreTrainedModel, names: Iterable[str]) -> None:
    """Stops gradients to whole parts of the model.

    The paper's released code assigned ``module.requires_grad_ = False``, which overwrites a method and freezes nothing.

    Raises:
        CheckpointError: an unknown part, or nothing would be left to train.
    """
    parts = {
        "vision": [model.model.visual],
        "llm": [model.model.language_model, model.lm_head],
    }
    for name in names:
        if name not in parts:
            raise CheckpointError(f"freeze: unknown part {name!r}, expected one of {sorted(parts)}")
        for part in parts[name]:
            for parameter in part.parameters():
                parameter.requires_grad = False
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise CheckpointError("freeze: every part is frozen, nothing is left to train")


def save_policy(policy: Policy, folder: Path, *, num_steps: int) -> None:
    """Writes a plain Hugging Face folder; adapters are merged, so it loads without peft and without this package.

    Merged, the weights are float32: what an adapter has learned at a small learning rate is below bfloat16's rounding.

    Of several processes all call this together, since each may hold a part of the weights; rank 0 writes.
    """
    from visual_r1.rollout.gathering import is_split, whole_state

    model, split = policy.model, {}
    if is_split(model):
        weights = whole_state(model, trained_only=policy.adapter is not None)
        if policy.adapter is None:
            split = {"state_dict": weights}
        elif distributed.is_main():
            model = _with_trained_adapter(policy, weights)
    if not distributed.is_main():
        return
    if policy.adapter is not None:
        model = model.float().merge_and_unload()  # peft's wrapper, not transformers' class
    staging = folder.with_name(f".{folder.name}.partial")
    for leftover in (staging, folder):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        with writing(folder):
            model.save_pretrained(staging, **split)
            with checkpoint_chat_template(policy):
                policy.processor.save_pretrained(staging)
            asked = {"style": policy.style.name, "prompt": policy.style.wording}
            write_json(staging / _OUR_FILE, {**asked, "num_steps": num_steps})
            sync_files(staging)
            staging.replace(folder)  # last and at once: where the folder lies, it is whole
    except Exception:
        shutil.rmtree(staging, ignore_errors=True)  # room for the next attempt
        raise


def saved_steps(folder: Path) -> int | None:
    """The optimizer steps behind a model that `save_policy` has written; None when there is none."""
    stored = folder / _OUR_FILE
    return int(read_json(stored)["num_steps"]) if stored.is_file() else None


@contextmanager
def checkpoint_chat_template(policy: Policy) -> Generator[None]:
    """Gives the processor its checkpoint's own template back for the moment of saving.

    Otherwise a base run would save the role-less template, and every later user of the folder would chat without roles.
    """
    from transformers import AutoProcessor

    ours = policy.processor.chat_template
    own = AutoProcessor.from_pretrained(policy.source.path, trust_remote_code=policy.source.trust_remote_code)
    policy.processor.chat_template = own.chat_template
    try:
        yield
    finally:
        policy.processor.chat_template = ours


def is_hub_id(path: str) -> bool:
    """Whether a path names a model on the hub rather than a folder here: one slash, and no such folder."""
    parts = path.split("/")
    return (
        len(parts) == 2
        and all(parts)
        and parts[0] not in (".", "..", "~", "runs", "models")
        and not Path(path).exists()
    )


def device_of(model: torch.nn.Module) -> torch.device:
    """Where the model's first parameter lies."""
    return next(model.parameters()).device


def _with_adapter(model: PreTrainedModel, adapter: Adapter) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=adapter.target_modules,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise CheckpointError(f"adapter.target_modules={adapter.target_modules!r}: {first_line(error)}") from error


def _with_trained_adapter(policy: Policy, weights: Mapping[str, torch.Tensor]) -> Any:
    """The policy in this process alone: the checkpoint that it began as, with the adapters that have been trained.

    peft cannot merge into weights that lie on other processes.
    """
    began = load_policy(policy.source, adapter=policy.adapter).model.cpu()
    adapters = [name for name, parameter in began.named_parameters() if parameter.requires_grad]
    began.load_state_dict({name: weights[name] for name in adapters}, strict=False)
    began.generation_config = policy.model.generation_config
    return began


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such checkpoint; give a Hugging Face folder or a hub id like Qwen/Qwen2-VL-2B"
        )
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: not a Hugging Face checkpoint, config.json is missing")
    if not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        fix = (
            "only pickled weights, which we never load; convert them to safetensors"
            if pickled
            else "no *.safetensors file"
        )
        raise CheckpointError(f"{folder}: {fix}")
    try:
        architectures = json.loads((folder / "config.json").read_text()).get("architectures") or ["unknown"]
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{folder}/config.json: not valid JSON: {error}") from error
    if not any("ConditionalGeneration" in name or "ImageTextToText" in name for name in architectures):
        raise CheckpointError(
            f"{folder}: architecture {architectures[0]} takes no images; expected a vision-language model"
        )
    if not any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")):
        raise CheckpointError(
            f"{folder}: no image processor; copy the original model's processor_config.json or preprocessor_config.json"
        )
