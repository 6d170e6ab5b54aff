"""Rollouts by vLLM's own server, which one or several training processes ask: it may have GPUs of its own.

Prompts travel as chat completions with the run's own chat template and PNG images; new weights as a folder that both
sides see, loaded by our extension of vLLM's worker.
"""

from __future__ import annotations

import base64
import shutil
import uuid
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file

from visual_r1 import distributed
from visual_r1.errors import first_line
from visual_r1.models import ModelSource, Policy
from visual_r1.rollout.engine import Completion, Conversation, EngineError, Sampling
from visual_r1.rollout.prompt_tokens import check_lengths, check_seen, compare_with_processor, prompt_tokens
from visual_r1.rollout.pushes import Push, Pushes
from visual_r1.rollout.seeds import prompt_seeds
from visual_r1.rollout.server_client import START, RouteError, ServerClient
from visual_r1.rollout.vllm_setup import served_name

_FILE_BYTES = 2**30
"""Weights in one file on their way to the server."""
_BAN = -100.0
"""What a token's logit is raised by so that it is never drawn; the server takes no less. exp(-100) is 4e-44."""


@dataclass(kw_only=True)
class VllmServerEngine:
    """Samples by a server that `visual-r1 rollout-server` has started with the same settings.

    Answers depend on the seed alone as far as rounding allows: which requests a server computes together depends on
    when they arrive.

    Raises:
        ValueError: a value out of its range.
    """

    url: str
    """Of the server: scheme, host and port."""
    weights_dir: str
    """A folder that training and server both see, for new weights: memory on one machine, a shared file system on
    several. It holds one copy of the weights for the moment of a push."""
    timeout_seconds: float
    """How long one answer may take."""
    batch_size: int
    """Completions that one process asks for at once; the server samples at most as many at a time."""
    max_model_length: int
    """Tokens of prompt and completion together; at most the model's own context."""
    kv_cache_gib: float | None
    """The server's memory for keys and values; None: room for `batch_size` sequences of `max_model_length`."""
    bf16: bool
    """The server computes in bfloat16, as the trainer does; otherwise in float32."""
    cuda_graphs: bool
    """On a GPU: faster decoding for a start that takes a minute longer. Without one it has no effect."""
    push_changed_only: bool
    """Only weights that may have changed since the last rollout are given to the server; otherwise all are."""
    warn_logp_difference: float | None = None
    """See `RolloutEngine.warn_logp_difference`."""
    _pushes: Pushes = field(init=False, repr=False, compare=False)
    _folder: str | None = field(default=None, init=False, repr=False, compare=False)
    """Where the server has read the last weights that this run has pushed."""
    _is_compared: bool = field(default=False, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_model_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"rollout.engine.{name}={getattr(self, name)}: expected at least 1")
        for name in ("timeout_seconds", "kv_cache_gib"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"rollout.engine.{name}={value}: expected more than 0")
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"rollout.engine.url={self.url}: expected something like http://127.0.0.1:8000")
        self.url = self.url.rstrip("/")
        self._pushes = Pushes(changed_only=self.push_changed_only)

    @property
    def needs_correction(self) -> bool:
        """Yes: its kernels round otherwise than the trainer's."""
        return True

    @property
    def takes_prefixes(self) -> bool:
        """No: its chat route takes text, which it would tokenise again, and its token route takes no image."""
        return False

    @property
    def dtype(self) -> str:
        """What the server computes in."""
        return "bfloat16" if self.bf16 else "float32"

    @property
    def client(self) -> ServerClient:
        """What asks the server."""
        return ServerClient(url=self.url, timeout_seconds=self.timeout_seconds)

    def check(self, source: ModelSource) -> None:
        """See `RolloutEngine.check`; here that the server answers, runs this architecture, and takes new weights."""
        if not Path(self.weights_dir).is_dir():
            raise ValueError(
                f"rollout.engine.weights_dir={self.weights_dir}: no such folder; name one that the server sees"
            )
        served = [model["id"] for model in self.client.get("v1/models")["data"]]
        if (expected := served_name(source)) not in served:
            raise ValueError(
                f"the vLLM server at {self.url} serves {', '.join(served)}, this run needs {expected}, the "
                f"architecture of {source.path}: start another with `{START}` and the run's own overrides"
            )
        try:
            says = self._says()
        except RouteError as error:
            raise ValueError(
                f"the vLLM server at {self.url} takes no new weights (it answers {error.status}): start it with "
                f"`{START}` and the run's own overrides"
            ) from error
        for name, wanted in (("dtype", self.dtype), ("logprobs_mode", "raw_logprobs")):
            if says[name] != wanted:
                raise ValueError(
                    f"the vLLM server at {self.url} runs with {name}={says[name]}, this run needs {wanted}: start it "
                    f"with `{START}` and the run's own overrides"
                )

    @contextmanager
    def serving(self, policy: Policy) -> Generator[ServerSampler]:
        """See `RolloutEngine.serving`. Rank 0 pushes the weights; the others wait until the server has them."""
        is_held = distributed.together(lambda: self._is_held() if distributed.is_main() else None)
        if not distributed.gathered(is_held)[0]:
            self._pushes.forget()
        with self._pushes.next(policy) as push:
            new = f"{self.weights_dir}/visual_r1_{uuid.uuid4().hex}"
            # Rank 0's name; and when all have it, nobody samples from the weights before any more.
            folder = distributed.gathered((push.is_empty and self._folder) or new)[0]
            try:
                self._write(push, Path(folder))
                distributed.together(lambda: self._push(push, folder) if distributed.is_main() else None)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            self._folder = folder
        yield ServerSampler(policy=policy, engine=self, folder=folder, pushed=push)

    def _is_held(self) -> bool:
        """Whether the server still has what this run has pushed last: it may have been started anew."""
        return self._folder is not None and self._says()["folder"] == self._folder

    def _write(self, push: Push, folder: Path) -> None:
        """Rank 0 writes what all bring together."""
        dtype = getattr(torch, self.dtype)
        bucket: dict[str, torch.Tensor] = {}
        size, count = 0, 0

        def flush() -> None:
            nonlocal bucket, size, count
            try:
                folder.mkdir(exist_ok=True)
                save_file(bucket, folder / f"{count:05d}.safetensors")
            except (OSError, SafetensorError) as error:
                raise EngineError(
                    f"rollout.engine.weights_dir={self.weights_dir}: cannot hold the new weights "
                    f"({first_line(error)}); free some room there or name another folder; the same command resumes "
                    "the run"
                ) from error
            bucket, size, count = {}, 0, count + 1

        for name, tensor in push.weights():
            if not distributed.is_main():
                continue
            bucket[name] = tensor.to(device="cpu", dtype=dtype, copy=True).contiguous()
            size += bucket[name].nbytes
            if size >= _FILE_BYTES:
                flush()
        if bucket:
            flush()

    def _push(self, push: Push, folder: str) -> None:
        if push.is_empty:
            return
        [is_taken] = self._call("take_folder", folder, None if push.is_whole else self._folder, push.num_tensors)
        if not is_taken:
            raise self.other_weights()
        # What the server remembers was computed with the weights before.
        if not self.client.post("reset_prefix_cache")["success"]:
            raise EngineError(
                f"the vLLM server at {self.url} is answering somebody else and cannot forget its prompts: a server "
                "serves one run at a time; start another for this one, and the same command resumes the run"
            )
        self.client.post("reset_encoder_cache")

    def other_weights(self) -> EngineError:
        """What is said where the server does not have this run's weights."""
        return EngineError(
            f"the vLLM server at {self.url} has been given other weights meanwhile, or has been started anew: a server "
            "serves one run at a time; start another for this one, and the same command resumes it"
        )

    def _says(self) -> dict[str, Any]:
        """What the server's worker says of itself."""
        [says] = self._call("describe")
        return says

    def _call(self, method: str, *args: str | int | None) -> list[Any]:
        """Results of a method of our extension, one a worker."""
        return self.client.post("collective_rpc", {"method": method, "args": list(args)})["results"]


@dataclass(frozen=True, kw_only=True)
class ServerSampler:
    """A server that holds a policy's weights."""

    policy: Policy
    engine: VllmServerEngine
    folder: str
    """Where the server has read these weights; it is gone since."""
    pushed: Push
    """What the server was given for this."""

    def generate(
        self,
        conversations: Sequence[Conversation],
        *,
        num_generations: int,
        sampling: Sampling,
        seed: int,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Completion]]:
        """See `Sampler.generate`; raises ValueError where there are prefixes."""
        if prefixes is not None:
            raise ValueError("rollout=vllm_server takes no prefixes: use rollout=transformers or rollout=vllm_colocate")
        engine, policy = self.engine, self.policy
        prompts = [prompt_tokens(policy, conversation) for conversation in conversations]
        if not engine._is_compared:
            compare_with_processor(policy, conversations, [prompt.expanded for prompt in prompts])
            engine._is_compared = True
        limit = min(engine.max_model_length, policy.context_length)
        check_lengths([len(prompt.expanded) for prompt in prompts], sampling=sampling, limit=limit)
        # Greedy completions of a group are one: vLLM refuses to make more.
        num_drawn = num_generations if sampling.temperature > 0 else 1
        shared = self._request(sampling, num_drawn=num_drawn)

        def answer(number: int) -> list[Completion]:
            body = {**shared, "messages": _messages(conversations[number]), "seed": seeds[number]}
            reply = engine.client.post("v1/chat/completions", body)
            expected = prompts[number].expanded
            check_seen(reply["prompt_token_ids"], expected, engine=f"the vLLM server at {engine.url}")
            return [self._completion(expected, choice) for choice in reply["choices"]]

        seeds = prompt_seeds(seed, len(prompts))
        with ThreadPoolExecutor(max_workers=max(1, engine.batch_size // num_drawn)) as pool:
            groups = list(pool.map(answer, range(len(prompts))))
        self._check_weights()
        return [group * (num_generations // num_drawn) for group in groups]

    def _check_weights(self) -> None:
        """Whether all answers until now are this policy's."""
        if self.engine._says()["folder"] != self.folder:
            raise self.engine.other_weights()

    def _request(self, sampling: Sampling, *, num_drawn: int) -> dict[str, Any]:
        policy = self.policy
        return {
            "chat_template": policy.processor.chat_template,
            "add_generation_prompt": True,
            "n": num_drawn,
            "max_completion_tokens": sampling.max_completion_length,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stop_token_ids": list(policy.end_token_ids),
            "ignore_eos": True,  # the policy's end tokens, and no other
            "logit_bias": {str(token): _BAN for token in policy.image_token_ids},
            "logprobs": True,
            "top_logprobs": 0,
            "return_token_ids": True,
        }

    def _completion(self, prompt_ids: tuple[int, ...], choice: Any) -> Completion:
        tokens = tuple(choice["token_ids"])
        logps = tuple(token["logprob"] for token in choice["logprobs"]["content"])
        if len(logps) != len(tokens):
            raise EngineError(f"the vLLM server returned {len(logps)} log-probs for {len(tokens)} tokens")
        return Completion(
            prompt_ids=prompt_ids,
            token_ids=tokens,
            logps=logps,
            is_truncated=tokens[-1] not in self.policy.end_token_ids,
        )


def _messages(conversation: Conversation) -> list[dict[str, Any]]:
    """A conversation as JSON, each image a PNG, which loses nothing."""

    def part(one: dict[str, Any]) -> dict[str, Any]:
        if one["type"] != "image":
            return one
        return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_png(one['image'])}"}}

    return [{**message, "content": [part(one) for one in message["content"]]} for message in conversation]


def _png(image: Image.Image) -> str:
    file = BytesIO()
    image.convert("RGB").save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()
