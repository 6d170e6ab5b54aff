"""What several processes have in common: who starts them, where they meet, what they refuse, and how they say it once.

Runs in several processes are tests/engines/test_distributed_*.py.
"""

from __future__ import annotations

import os
import signal
import socket

import pytest
import torch

from tests.processes import COMMON, with_torchrun
from visual_r1 import distributed
from visual_r1.config import CONF, build, compose_config
from visual_r1.distributed import AlreadySaidError, DistributedError
from visual_r1.experiment import prepare
from visual_r1.methods.grpo import Grpo
from visual_r1.methods.sft import Sft

AGREEING = """
import os
from visual_r1 import distributed

def step():
    if os.environ["WRONG"] == "everywhere" or os.environ["WRONG"] == "in one" and distributed.rank() == 1:
        raise ValueError("the file is broken")

distributed.keep_quiet()
print("hello")
distributed.join(deepspeed=False)
try:
    distributed.together(step)
    if os.environ["WRONG"] == "in the program":
        raise RuntimeError("boom")
except ValueError as error:
    distributed.say_error(str(error))
except RuntimeError:
    if not distributed.fails_first():
        os._exit(1)
    raise
print("not reached")
"""


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("everywhere", "error: the file is broken"),
        ("in one", "error: process 1: the file is broken"),
    ],
)
def test_what_is_wrong_in_some_process_is_said_once_and_stops_all(tmp_path, wrong, said):
    (tmp_path / "agreeing.py").write_text(AGREEING)
    done = with_torchrun(tmp_path, "agreeing.py", WRONG=wrong)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].startswith(said)
    assert done.stdout == "hello\n" and done.returncode != 0


def test_of_several_tracebacks_the_first_is_shown(tmp_path):
    (tmp_path / "agreeing.py").write_text(AGREEING)
    done = with_torchrun(tmp_path, "agreeing.py", WRONG="in the program")
    assert done.stderr.count("RuntimeError: boom") == 1 and done.returncode != 0


UNHEARD = """
from visual_r1 import distributed

distributed.keep_quiet()
distributed.join(deepspeed=False)
if distributed.rank() == 1:
    distributed.end_unheard("no memory")
distributed.meet()
"""


def test_a_process_that_others_wait_for_says_itself_why_it_ends(tmp_path):
    (tmp_path / "unheard.py").write_text(UNHEARD)
    done = with_torchrun(tmp_path, "unheard.py")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors == ["error: process 1: no memory"] and done.returncode != 0


# What follows starts nothing.


@pytest.fixture(autouse=True)
def nobody_has_started_us(monkeypatch):
    """Whatever runs these tests may itself be a scheduler's task."""
    for name in ("RANK", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def joined(monkeypatch):
    """Makes this process believe that it is one of several."""

    def pretend(processes, *, rank=0):
        for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", processes)):
            monkeypatch.setenv(name, str(value))

    return pretend


def test_torchrun_and_the_config_must_agree(joined):
    joined(2)
    distributed.check(processes=2)
    with pytest.raises(DistributedError, match=r"WORLD_SIZE=2 but distributed\.num_processes=3"):
        distributed.check(processes=3)


@pytest.mark.parametrize("library", ["DEEPSPEED", "FSDP"])
def test_what_accelerate_would_split_by_itself_is_refused(joined, monkeypatch, library):
    joined(2)
    monkeypatch.setenv(f"ACCELERATE_USE_{library}", "true")
    with pytest.raises(DistributedError, match=f"ACCELERATE_USE_{library}=true: the config group `distributed`"):
        distributed.check(processes=2, deepspeed=None)


@pytest.fixture
def task(monkeypatch):
    """Makes this process believe that ``srun`` has started it."""

    def pretend(number, *, tasks, nodes, **more):
        of_step = {"NUM_TASKS": tasks, "NUM_NODES": nodes, "NODELIST": "gpu[07-08]", "ID": 2}
        values = {f"STEP_{key}": value for key, value in of_step.items()}
        values |= {"PROCID": number, "LOCALID": number % (tasks // nodes), "JOB_ID": 1000, **more}
        for key, value in values.items():
            monkeypatch.setenv(f"SLURM_{key}", str(value))
        # What adopting sets is taken back after the test.
        for key in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.setenv(key, "")
            monkeypatch.delenv(key)

    return pretend


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("node[01-04,07]", "node01"),
        ("node[07,01-04],login", "node07"),
        ("gpu-a[3-4],gpu-b[1-2]", "gpu-a3"),
        ("rack[2-3]n[10-12]", "rack2n10"),
        ("gpu[5].cluster.org", "gpu5.cluster.org"),
    ],
)
def test_the_first_of_slurms_machines(nodes, first):
    assert distributed.first_node(nodes) == first


def test_a_task_a_gpu_takes_its_place_by_itself(task):
    task(5, tasks=8, nodes=2)
    distributed.adopt_tasks()
    assert distributed.is_joined() and distributed.rank() == 5 and distributed.num_processes() == 8
    place = {name: os.environ[name] for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}
    assert place == {"LOCAL_RANK": "1", "MASTER_ADDR": "gpu07", "MASTER_PORT": str(15_000 + (31 * 1000 + 2) % 15_000)}


def test_tasks_need_the_gpus_of_their_own_machine_only(task, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    task(5, tasks=8, nodes=2)
    distributed.adopt_tasks()
    distributed.check(processes=8, nodes=2)
    task(5, tasks=16, nodes=2)
    distributed.adopt_tasks()
    with pytest.raises(DistributedError, match=r"has 4 GPUs for 8 of them; set distributed\.num_processes=8"):
        distributed.check(processes=16, nodes=2)


@pytest.fixture
def on_gpus(monkeypatch):
    """Makes this process believe that it sees GPUs; it meets nobody, and outlives its parent. The GPUs it has taken."""
    taken = []

    def pretend(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", taken.append)
        monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_args, **_arguments: None)
        monkeypatch.setattr(distributed, "_end_with_parent", lambda: None)
        return taken

    return pretend


@pytest.mark.parametrize(("gpus", "number"), [(1, "0"), (4, "3")])
def test_a_gpu_that_a_launcher_has_dealt_out_is_the_first(task, on_gpus, monkeypatch, gpus, number):
    """accelerate, DeepSpeed and vLLM go by LOCAL_RANK, and a number beyond what is seen ends them."""
    task(3, tasks=4, nodes=1)
    distributed.adopt_tasks()
    taken = on_gpus(gpus)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    distributed.join(deepspeed=False)
    assert os.environ["LOCAL_RANK"] == number and taken == [int(number)]


def test_the_processes_of_a_machine_share_its_cores(task, on_gpus, monkeypatch):
    task(5, tasks=8, nodes=2)
    distributed.adopt_tasks()
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    on_gpus(4)
    distributed.join(deepspeed=False)
    assert os.environ["OMP_NUM_THREADS"] == "16"


@pytest.mark.parametrize(("tasks", "nodes"), [(1, 1), (2, 2)])
def test_a_task_a_machine_starts_its_own(task, tasks, nodes):
    task(tasks - 1, tasks=tasks, nodes=nodes)
    distributed.adopt_tasks()
    assert not distributed.is_joined() and distributed.has_neighbours() == (tasks > 1)
    assert distributed.is_main() == (tasks == 1)  # of several machines, the first one's says what is wrong


def test_a_batch_script_without_srun_is_one_process(monkeypatch):
    for name, value in (("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8"), ("SLURM_JOB_ID", "1")):
        monkeypatch.setenv(name, value)
    distributed.adopt_tasks()
    assert not distributed.is_joined() and not distributed.has_neighbours()


def test_tasks_and_machines_must_agree(task):
    task(0, tasks=2, nodes=2)
    with pytest.raises(
        DistributedError, match=r"srun has started 2 tasks, one a machine, but distributed\.num_nodes=1"
    ):
        distributed.check(processes=4)


def test_machines_must_know_where_to_meet():
    for rendezvous, message in (
        (None, r"distributed\.num_nodes=2: nobody says where they meet; set distributed\.rendezvous=host:port"),
        ("node1", r"distributed\.rendezvous=node1: expected host:port"),
        ("node1:many", r"distributed\.rendezvous=node1:many: expected host:port"),
        ("no.such.host.invalid:29500", r"no\.such\.host\.invalid:29500, where the machines meet: "),
    ):
        with pytest.raises(DistributedError, match=message):
            distributed.check(processes=4, nodes=2, rendezvous=rendezvous)


def test_a_port_that_is_taken_is_named():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(
            DistributedError, match=rf"127\.0\.0\.1:{port}, where the machines meet: Address already in"
        ):
            distributed.check(processes=2, nodes=2, rendezvous=f"127.0.0.1:{port}")


def test_a_port_that_is_taken_is_named_to_the_tasks_of_srun_too(task):
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        task(0, tasks=2, nodes=1)
        distributed.adopt_tasks()
        with pytest.raises(
            DistributedError, match=f"port {port}, where the tasks of srun meet: Address already in use"
        ):
            distributed.join(deepspeed=False, rendezvous=f"localhost:{port}")


@pytest.mark.parametrize(
    ("gpus", "asked", "nodes", "expected"), [(0, 4, 1, 4), (1, 4, 1, 1), (2, 4, 1, 2), (8, 4, 1, 4), (2, 8, 2, 4)]
)
def test_an_evaluation_makes_do_with_the_gpus_there_are(monkeypatch, gpus, asked, nodes, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert distributed.num_evaluating(asked, nodes) == expected


def test_processes_that_composed_different_configs_are_refused(monkeypatch):
    theirs = {"name": "a", "seed": 0}
    monkeypatch.setattr(distributed, "gathered", lambda ours: [theirs, ours])
    distributed.check_same(theirs)
    with pytest.raises(DistributedError, match="different values of name: "):
        distributed.check_same({"name": "b", "seed": 0})


def test_a_process_on_its_own_is_the_main_one(joined):
    assert distributed.is_main() and distributed.num_processes() == 1
    assert distributed.together(lambda: 3) == 3 and distributed.gathered("x") == ["x"]
    joined(4, rank=3)
    assert not distributed.is_main() and distributed.num_processes() == 4


ZERO2 = {"zero_optimization": {"stage": 2}}


@pytest.mark.parametrize(
    ("processes", "deepspeed", "message"),
    [
        (0, None, "distributed.num_processes=0: expected at least 1"),
        (4, None, "distributed.num_processes=4: this machine has 2 GPUs; set distributed.num_processes=2"),
        (2, {"zero_optimization": {"stage": 3}}, "stage3_gather_16bit_weights_on_model_save=false: a checkpoint would"),
        (2, {**ZERO2, "gradient_clipping": 0.5}, "distributed.deepspeed.gradient_clipping=0.5: method.trl"),
        (2, {**ZERO2, "bf16": {"enabled": True}}, "distributed.deepspeed.bf16.enabled=True: scale.bf16 decides this"),
    ],
)
def test_what_cannot_start_is_refused_by_name(monkeypatch, processes, deepspeed, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(distributed, "find_spec", lambda name: name)  # as where DeepSpeed is installed
    distributed.check(processes=2, deepspeed=ZERO2)
    with pytest.raises(DistributedError) as refused:
        distributed.check(processes=processes, deepspeed=deepspeed)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_machines_share_the_processes_evenly(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    def check(processes):
        distributed.check(processes=processes, nodes=2, rendezvous="192.0.2.1:29517")  # of another machine

    check(4)
    with pytest.raises(DistributedError, match=r"distributed\.num_nodes=2: 3 processes do not divide among so many"):
        check(3)
    with pytest.raises(DistributedError, match=r"has 2 GPUs for 4 of them; set distributed\.num_processes=4"):
        check(8)


@pytest.mark.parametrize(
    ("fsdp", "gpus", "message"),
    [
        ({"version": 2}, 0, r"distributed\.fsdp: without a GPU accelerate would train by ddp in silence"),
        ({"version": 1}, 2, r"distributed\.fsdp\.version=1: expected 2"),
    ],
)
def test_fsdp_that_would_be_something_else_is_refused(monkeypatch, fsdp, gpus, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(DistributedError, match=message):
        distributed.check(processes=2, fsdp=fsdp)


def test_a_model_is_split_in_one_way(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(DistributedError, match="both split the model"):
        distributed.check(processes=2, deepspeed=ZERO2, fsdp={"version": 2})


def test_missing_deepspeed_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(distributed, "find_spec", lambda name: None)
    with pytest.raises(DistributedError, match=r"pip install 'visual-r1\[deepspeed\]'"):
        distributed.check(processes=2, deepspeed=ZERO2)


@pytest.mark.parametrize(
    ("exit_codes", "message"),
    [
        (
            {0: 1, 1: -signal.SIGKILL},
            "process 1 of 4 was killed by SIGKILL",
        ),  # the other has lost it, and failed of that
        ({0: -signal.SIGTERM, 2: 1, 3: -signal.SIGTERM}, r"process 2 of 4 has failed \(exit code 1\)"),
        ({0: -signal.SIGTERM}, "process 0 of 4 was killed by SIGTERM"),
    ],
)
def test_the_process_that_died_first_is_named(exit_codes, message):
    with pytest.raises(DistributedError, match=message):
        raise distributed._reason(exit_codes, 4)
    assert isinstance(distributed._reason({**exit_codes, 1: distributed.USER_ERROR}, 4), AlreadySaidError)


TRL = {"num_generations": 8, "max_completion_length": 8, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


ODD = {**TRL, "num_generations": 3}


def test_a_step_is_shared_out_among_the_processes(joined):
    joined(4)
    paper = build(compose_config(["scale=paper"]).method)
    assert paper._batch_arguments() == {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}


@pytest.mark.parametrize("method", sorted(file.stem for file in (CONF / "method").glob("*.yaml")))
def test_every_recipe_can_be_shared_out_at_the_papers_scale(joined, method):
    cfg = compose_config(["scale=paper", f"method={method}"])
    joined(cfg.distributed.num_processes)
    assert cfg.distributed.num_processes == 4
    build(cfg.method)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: Grpo(prompts_per_step=2, micro_batch_size=2, trl=ODD),
            "2 prompts x 3 completions do not divide among 4",
        ),
        (
            lambda: Grpo(prompts_per_step=2, micro_batch_size=2, trl=ODD),
            "set method.prompts_per_step to a multiple of 4",
        ),
        (lambda: Grpo(prompts_per_step=4, micro_batch_size=16, trl=TRL), "set method.micro_batch_size=8"),
        (lambda: Sft(examples_per_step=8, micro_batch_size=8, trl={}), "among 4 processes into micro-batches of 8"),
        (lambda: Sft(examples_per_step=8, micro_batch_size=8, trl={}), "set method.micro_batch_size=2"),
    ],
    ids=["completions", "prompts", "micro-batch", "examples", "micro-batch of examples"],
)
def test_a_step_that_cannot_be_shared_out_is_refused(joined, build, message):
    joined(4)
    with pytest.raises(ValueError) as refused:
        build()
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["distributed=ddp"], "distributed.num_processes=2: this process is alone"),
        (["distributed=zero2", "model.dtype=bfloat16"], "model.dtype=bfloat16 scale.bf16=false"),
        (
            ["adapter=lora", "rollout=vllm_colocate", "scale.bf16=true"],
            "adapter=lora rollout.engine.bf16=true: merged and rounded to bfloat16",
        ),
        (["+method.trl.deepspeed={}"], "method.trl.deepspeed: the framework sets this itself"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, checkpoint, overrides, message):
    with pytest.raises(ValueError) as refused:
        prepare(compose_config([*COMMON, f"model.path={checkpoint('base')}", f"runs_dir={tmp_path}", *overrides]))
    assert message in str(refused.value)


def test_an_evaluation_takes_any_number_of_processes(tmp_path, checkpoint):
    overrides = [*COMMON, f"model.path={checkpoint('base')}", f"runs_dir={tmp_path}", "method=eval", "distributed=ddp"]
    assert prepare(compose_config(overrides)).name == "base-eval"
