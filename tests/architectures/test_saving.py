"""What we save, others load: transformers alone, and this package again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from visual_r1.architectures.checkpoints import read_architecture, read_chat_template
from visual_r1.models import ModelSource, load_policy, save_policy
from visual_r1.rollout.engine import Sampling
from visual_r1.rollout.transformers import TransformersEngine

FAMILIES = ("qwen2_vl_2b", "qwen2_5_vl_3b_instruct", "qwen3_vl_2b_instruct")
GREEDY = Sampling(max_completion_length=8, temperature=0.0)


@dataclass(frozen=True)
class Saved:
    """A folder that `save_policy` wrote, and what the policy in memory made of one question."""

    folder: Path
    image: Path
    prompt: str
    prompt_ids: list[int]
    logits: torch.Tensor
    completion: list[int]


def last_logits(model, processor, prompt, image):
    inputs = processor(text=[prompt], images=[Image.open(image)], return_tensors="pt").to(model.device)
    with torch.no_grad():
        return model(**inputs, logits_to_keep=1).logits[0, -1].float().cpu()


def greedy(policy, question):
    with TransformersEngine(batch_size=1).serving(policy) as sampler:
        [[completion]] = sampler.generate([policy.style.messages(question)], num_generations=1, sampling=GREEDY, seed=0)
    return completion


@pytest.fixture(scope="module")
def saved(load_adapted, example, tmp_path_factory):
    """Each family once, after its adapters have changed; they are merged by saving."""
    root = tmp_path_factory.mktemp("saved")
    by_name = {}
    for name in FAMILIES:
        policy = load_adapted(name)
        question = policy.fitted(example((300, 200)))
        image = root / f"{name}.png"
        question.images[0].save(image)
        prompt = policy.processor.apply_chat_template(
            policy.style.messages(question), add_generation_prompt=True, tokenize=False
        )
        policy.model.eval()
        completion = greedy(policy, question)
        logits = last_logits(policy.model, policy.processor, prompt, image)
        save_policy(policy, root / name, num_steps=3)
        by_name[name] = Saved(
            folder=root / name,
            image=image,
            prompt=prompt,
            prompt_ids=list(completion.prompt_ids),
            logits=logits,
            completion=list(completion.token_ids),
        )
    return by_name


def run_alone(script, argument, **environment):
    """Runs Python in a process that cannot import this package."""
    script = f"import json, sys\nsys.modules['visual_r1'] = None\nargument = json.loads(sys.argv[1])\n{script}"
    command = [sys.executable, "-c", script, json.dumps(argument)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert result.returncode == 0, result.stderr[-3000:]


TRANSFORMERS = """
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor
logits = {}
for name, (folder, image, prompt) in argument["saved"].items():
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    inputs = AutoProcessor.from_pretrained(folder)(text=[prompt], images=[Image.open(image)], return_tensors="pt")
    with torch.no_grad():
        logits[name] = model(**inputs, logits_to_keep=1).logits[0, -1].float()
save_file(logits, argument["out"])
"""


def test_transformers_alone_loads_it(saved, tmp_path):
    out = tmp_path / "logits.safetensors"
    places = {name: (str(one.folder), str(one.image), one.prompt) for name, one in saved.items()}
    run_alone(TRANSFORMERS, {"saved": places, "out": str(out)})
    with safe_open(out, "pt") as file:
        for name, one in saved.items():
            torch.testing.assert_close(file.get_tensor(name), one.logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_weights_keep_the_names_of_the_hub(saved, narrow, name):
    names = []
    for folder in (saved[name].folder, narrow(name)):
        with safe_open(folder / "model.safetensors", "pt") as file:
            names.append({key: tuple(file.get_slice(key).get_shape()) for key in file.keys()})
    assert names[0] == names[1] and len(names[0]) > 40
    # The head is tied to the embedding and must not come apart from it.
    assert "lm_head.weight" not in names[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_we_load_it_again(saved, example, name):
    one = saved[name]
    policy = load_policy(ModelSource(name=name, path=str(one.folder), max_pixels=401_408))
    assert policy.style.name == ("base" if name == "qwen2_vl_2b" else "instruct")
    torch.testing.assert_close(
        last_logits(policy.model, policy.processor, one.prompt, one.image), one.logits, rtol=0, atol=1e-4
    )
    completion = greedy(policy, policy.fitted(example((300, 200))))
    assert (list(completion.prompt_ids), list(completion.token_ids)) == (one.prompt_ids, one.completion)
    assert policy.end_token_ids == (151645, 151643)
    # What the checkpoint was given by its makers goes on with it, whatever it was trained with.
    assert policy.processor.image_processor.size["longest_edge"] > 401_408
    own_template = read_chat_template(read_architecture(name)["chat_template"])
    assert (one.folder / "chat_template.jinja").read_text() == own_template
