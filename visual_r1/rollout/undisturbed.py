"""A foreign engine in the training process: what it changes of the process is put back."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch

from visual_r1 import preemption


@contextmanager
def undisturbed() -> Generator[None]:
    """Puts back, at the end, what vLLM 0.31 changes when it is imported, started or asked.

    Randomness: the seeds that it sets (Python's, numpy's and torch's), and on a CPU the draws that it takes from
    torch's generator even where each request has its own. Threads: it replaces ``torch.set_num_threads`` by a function
    that does nothing. The environment: among others ``LD_PRELOAD`` and ``LOCAL_WORLD_SIZE``; its own variables stay.

    Three changes stay. In a process on its own it opens a process group of one. Without an accelerator it replaces
    ``torch.accelerator.synchronize`` and ``empty_cache``, which would raise, by functions that do nothing, and binds
    the process's memory to the node of its first core.
    """
    generators = random.getstate(), np.random.get_state()
    environment = dict(os.environ)
    set_num_threads, num_threads, dtype = torch.set_num_threads, torch.get_num_threads(), torch.get_default_dtype()
    signals = (signal.SIGINT, *preemption.SIGNALS)
    handlers = {one: signal.getsignal(one) for one in signals}
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        torch.set_num_threads = set_num_threads
        if torch.get_num_threads() != num_threads:
            torch.set_num_threads(num_threads)
        torch.set_default_dtype(dtype)
        if affinity is not None and os.sched_getaffinity(0) != affinity:
            os.sched_setaffinity(0, affinity)
        for name in [name for name in os.environ if name not in environment and not name.startswith("VLLM_")]:
            del os.environ[name]
        os.environ |= {name: value for name, value in environment.items() if not name.startswith("VLLM_")}
        if threading.current_thread() is threading.main_thread():
            for one, handler in handlers.items():
                if signal.getsignal(one) != handler:
                    signal.signal(one, handler)
