"""What we add to vLLM's worker, in this process or in a server's: new weights, and the trainer's log-probabilities.

vLLM imports this module by its name (``worker_extension_cls``) before it loads a model.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import vllm._custom_ops
import vllm.model_executor.layers.utils
from safetensors import safe_open
from vllm.platforms import current_platform
from vllm.v1.sample.sampler import Sampler as VllmSampler

WORKER = f"{__name__}.PolicyWorker"
"""The value of ``worker_extension_cls``."""

if current_platform.is_cpu():
    # vLLM 0.31 packs each linear weight for oneDNN (with AMX: for its own kernels) and throws the plain one away, and
    # what is packed takes no new weights. With tied embeddings its own `reload_weights` leaves the head as it was.
    vllm._custom_ops._supports_onednn = False
    vllm.model_executor.layers.utils.check_cpu_sgl_kernel = lambda *_args, **_kwargs: False


class PolicyWorker:
    """Mixed into vLLM's worker; its methods are called through ``collective_rpc``."""

    model_runner: Any
    _folder: str | None = None

    def describe(self) -> dict[str, str | None]:
        """What a run must agree with; ``folder`` is the last that `take_folder` has taken, None before the first."""
        config = self.model_runner.model_config
        dtype = str(config.dtype).removeprefix("torch.")
        return {"dtype": dtype, "logprobs_mode": str(config.logprobs_mode), "folder": self._folder}

    def take_weights(self, weights: Iterable[tuple[str, torch.Tensor]], is_whole: bool) -> None:
        """Copies weights of a policy, by the names of its checkpoint, over those in use.

        From now on log-probabilities are those of `PolicySampler`.

        Args:
            weights: names and tensors.
            is_whole: they must be all that the model has; otherwise the others stay.
        """
        sampler = self.model_runner.sampler
        if not isinstance(sampler, PolicySampler):
            self.model_runner.sampler = PolicySampler(sampler.logprobs_mode, sampler.use_fp64_gumbel)
        model = self.model_runner.model
        taken = model.load_weights(weights)
        own = {name for name, _ in model.named_parameters()}
        if is_whole and (missing := sorted(own - taken)):
            raise RuntimeError(f"no new weights for {len(missing)} of vLLM's {len(own)} parameters, e.g. {missing[0]}")

    def take_folder(self, folder: str, base: str | None, num_tensors: int) -> bool:
        """The same from safetensors files, unless these are what has changed since another folder than it has.

        Args:
            folder: a path that this process can read.
            base: the folder that must have been taken last; None: the new weights are whole.
            num_tensors: how many there are.

        Returns:
            Whether they were taken.

        Raises:
            RuntimeError: fewer can be seen here, as on a file system that is slow to show what another machine wrote.
        """
        if base is not None and base != self._folder:
            return False
        self._folder = None  # until all of them are there

        num_found = 0

        def weights() -> Iterable[tuple[str, torch.Tensor]]:
            nonlocal num_found
            for path in sorted(Path(folder).glob("*.safetensors")):
                with safe_open(path, "pt") as file:
                    for name in file.keys():  # noqa: SIM118 (no mapping)
                        num_found += 1
                        yield name, file.get_tensor(name)

        self.take_weights(weights(), base is None)
        if num_found != num_tensors:
            raise RuntimeError(
                f"{folder}: {num_found} of {num_tensors} new weights can be seen here; rollout.engine.weights_dir must "
                "be one file system for the run and the server"
            )
        self._folder = folder
        return True


class PolicySampler(VllmSampler):
    """vLLM's sampler whose raw log-probabilities are those of each row's own temperature.

    vLLM has them at temperature 1, or after the ban and the cuts; the trainer's are at the sampling temperature before
    both. A greedy row has them at 1.
    """

    _temperature: torch.Tensor | None = None

    def forward(self, logits: torch.Tensor, sampling_metadata: Any, *args: Any, **kwargs: Any) -> Any:
        """Samples; see `vllm.v1.sample.sampler.Sampler`."""
        self._temperature = sampling_metadata.temperature
        return super().forward(logits, sampling_metadata, *args, **kwargs)

    def compute_logprobs(self, logits: torch.Tensor) -> torch.Tensor:
        """[N, V], float32, of raw logits [N, V]."""
        if self._temperature is not None:
            temperature = torch.where(self._temperature < 1e-5, 1.0, self._temperature)  # below: greedy, as in vLLM
            logits = logits.float() / temperature[:, None]
        return logits.log_softmax(dim=-1, dtype=torch.float32)
