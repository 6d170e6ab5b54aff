"""The prompts, byte for byte, and invariant 1: rollout, training, SFT and evaluation see the same tokens and pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from visual_r1.evaluation import evaluate
from visual_r1.examples import Example
from visual_r1.methods.grpo import Grpo
from visual_r1.methods.sft import CompletionSftTrainer, Sft, sft_row
from visual_r1.metrics.reflection import Reflection
from visual_r1.prompts import SFT_REFERENCE, prompt_style
from visual_r1.rollout.engine import Sampling
from visual_r1.rollout.transformers import TransformersEngine, encode_prompts

KINDS = ("base", "instruct")
GOLDEN = Path(__file__).parent / "golden" / "prompts"
ANSWERS = {"base": "</think>\n<answer>(B)</answer>", "instruct": "<answer>(B)</answer>"}
END_TOKENS = {"base": "<|endoftext|>", "instruct": "<|im_end|>"}

# The published wording; see prompts.py for its source.
RENDERED = {
    "base": (
        "<|vision_start|><|image_pad|><|vision_end|>"
        "A conversation between User and Assistant. The user asks a question about the image, and the Assistant solves "
        "it. The assistant first thinks about the reasoning process in the mind and then provides the user with the "
        "answer.\n"
        "User: How many {red} cups? Select from the following choices. (A) 1 (B) 2 \n"
        "Assistant: Let me solve this step by step.\n"
        "<think>"
    ),
    "instruct": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
        "How many {red} cups? Select from the following choices. (A) 1 (B) 2  "
        "Output the thinking process in <think> </think> and final answer (option) in <answer> </answer> tags."
        "<|im_end|>\n<|im_start|>assistant\n"
    ),
}


def example(*, size=(84, 56), question="How many {red} cups? Select from the following choices. (A) 1 (B) 2"):
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    return Example(id=question, images=(image,), question=question, choices=("1", "2"), solution="B", category="Count")


EXAMPLES = [
    example(),
    example(size=(112, 112), question="Which is nearer, {question} or {}? Select from: (A) it (B) that"),
    example(size=(56, 140), question="Is the 椅子 left of the plate? (A) yes (B) no"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_rendered_prompt_is_the_published_one(policies, kind):
    policy = policies[kind]
    messages = policy.style.messages(EXAMPLES[0])
    assert policy.processor.apply_chat_template(messages, add_generation_prompt=True) == RENDERED[kind]


# A row of SAT as its training set writes it, and an item of CV-Bench as its test set does.
SAT_QUESTION = "Answer in natural language. How many chairs are there? Choose between the following options: 3, 2 or 4"
CV_BENCH_QUESTION = "How many organs are in the image? Select from the following choices.\n(A) 3\n(B) 2\n(C) 1\n(D) 0"


def asked_in(policy, style, question):
    """The text that a processor makes of a question, special tokens and all."""
    messages = style.messages(example(question=question))
    return policy.with_style(style).processor.apply_chat_template(messages, add_generation_prompt=True)


@pytest.mark.parametrize("wording", ["clean", "paper"])
@pytest.mark.parametrize("kind", KINDS)
def test_both_wordings_are_rendered_byte_for_byte(policies, kind, wording):
    # The golden files of the paper's wording were rendered by the released code's own lines (commit cd71978:
    # process_dataset.py, grpo.py and the two evaluators) under the checkpoints' own chat templates.
    style = prompt_style(kind, wording)
    asked = {
        "training": asked_in(policies[kind], style, SAT_QUESTION),
        "evaluation": asked_in(policies[kind], style.for_evaluation(), CV_BENCH_QUESTION),
    }
    for purpose, text in asked.items():
        assert text.encode() == (GOLDEN / f"{wording}-{kind}-{purpose}.txt").read_bytes()


def test_the_sft_of_the_paper_talks_to_a_base_model_as_to_an_assistant(load):
    policy = load("base").with_style(SFT_REFERENCE)
    one = replace(example(question=SAT_QUESTION), solution_as_written="2")
    turn = [*SFT_REFERENCE.messages(one), {"role": "assistant", "content": SFT_REFERENCE.answer_only(one)}]
    assert policy.processor.apply_chat_template(turn).encode() == (GOLDEN / "sft_reference-training.txt").read_bytes()
    asked = asked_in(policy, SFT_REFERENCE.for_evaluation(), CV_BENCH_QUESTION)
    assert asked.encode() == (GOLDEN / "sft_reference-evaluation.txt").read_bytes()


def test_the_clean_wording_has_none_of_the_slips():
    for kind in KINDS:
        clean, paper = (prompt_style(kind, wording) for wording in ("clean", "paper"))
        assert "<image>" not in clean.template and clean.for_evaluation() == clean
        assert paper.template.count("<image>") == 1 and paper.for_evaluation() != paper
        assert paper.opens_think == clean.opens_think and paper.chat_template == clean.chat_template
    assert "User:  " in paper_base_text() and "User:  " not in prompt_style("base", "clean").text(example())


def paper_base_text():
    return prompt_style("base", "paper").text(example())


@pytest.mark.parametrize(("name", "wording"), [("base", "loud"), ("basic", "paper"), ("base", "sft_reference")])
def test_an_unknown_style_or_wording_is_refused(name, wording):
    with pytest.raises(ValueError, match="unknown, expected"):
        prompt_style(name, wording)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("one", EXAMPLES, ids=["braces", "braces-with-our-own-name", "unknown-script"])
def test_a_question_reaches_the_policy_as_it_is_written(policies, kind, one):
    policy = policies[kind]
    assert one.question in policy.style.text(one)
    ids = encode_prompts(policy, [policy.style.messages(one)])["input_ids"][0]
    assert one.question in policy.tokenizer.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_images_come_first_and_in_order(policies, kind):
    first, second = (Image.new("RGB", (56, 56), colour) for colour in ("red", "blue"))
    two = replace(EXAMPLES[0], images=(first, second))
    [message] = policies[kind].style.messages(two)
    assert [part["type"] for part in message["content"]] == ["image", "image", "text"]
    assert [part["image"] for part in message["content"][:2]] == [first, second]


@pytest.fixture(scope="module", params=KINDS)
def policy(request, policies):
    return policies[request.param]


def reference(policy, one):
    """Token ids and pixels of one example, encoded alone."""
    inputs = encode_prompts(policy, [policy.style.messages(one)])
    return inputs["input_ids"][0].tolist(), inputs["pixel_values"]


def unpadded(ids, mask):
    return [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]


def pixels_by_row(inputs):
    return torch.split(inputs["pixel_values"].cpu(), inputs["image_grid_thw"].prod(dim=-1).tolist())


def seen_by(policy, action) -> list[dict[str, torch.Tensor]]:
    """The inputs of each forward of the model, while an action runs, that holds an image."""
    seen: list[dict[str, torch.Tensor]] = []

    def look(_module, _args, inputs):
        if inputs.get("pixel_values") is not None:
            seen.append({name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)})

    handle = policy.model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        action()
    finally:
        handle.remove()
    return seen


def test_rollout_sees_the_prompt(policy):
    def roll_out():
        conversations = [policy.style.messages(one) for one in EXAMPLES]
        with TransformersEngine(batch_size=8).serving(policy) as sampler:
            groups = sampler.generate(
                conversations, num_generations=2, sampling=Sampling(max_completion_length=2), seed=0
            )
        for one, group in zip(EXAMPLES, groups, strict=True):
            assert [list(completion.prompt_ids) for completion in group] == [reference(policy, one)[0]] * 2

    [inputs] = seen_by(policy, roll_out)
    assert unpadded(inputs["input_ids"], inputs["attention_mask"]) == [reference(policy, one)[0] for one in EXAMPLES]
    for one, pixels in zip(EXAMPLES, pixels_by_row(inputs), strict=True):
        assert torch.equal(pixels, reference(policy, one)[1])


def test_evaluation_sees_the_prompt(policy):
    def run():
        evaluate(
            policy,
            TransformersEngine(batch_size=8),
            EXAMPLES,
            benchmark="three",
            sampling=Sampling(max_completion_length=2, temperature=0.0),
            reflection=Reflection(phrases=("wait",)),
        )

    with_images, with_blanks = seen_by(policy, run)
    assert unpadded(with_images["input_ids"], with_images["attention_mask"]) == [
        reference(policy, one)[0] for one in EXAMPLES
    ]
    for one, pixels in zip(EXAMPLES, pixels_by_row(with_images), strict=True):
        assert torch.equal(pixels, reference(policy, one)[1])
    assert torch.equal(with_blanks["input_ids"], with_images["input_ids"])
    assert not torch.equal(with_blanks["pixel_values"], with_images["pixel_values"])


@pytest.mark.parametrize("kind", KINDS)
def test_grpo_trains_on_the_prompt(load, make_context, trl_arguments, kind):
    policy = load(kind)
    method = Grpo(prompts_per_step=3, micro_batch_size=2, trl=trl_arguments(num_generations=2))
    seen = seen_by(policy, lambda: method.train(policy, make_context(examples=EXAMPLES)))
    updates = [inputs for inputs in seen if "labels" in inputs]  # the engine asks for no loss
    found = [
        (tuple(ids), pixels)
        for inputs in updates
        for ids, pixels in zip(prompts_of(policy, inputs), pixels_by_row(inputs), strict=True)
    ]
    expected = {tuple(reference(policy, one)[0]): reference(policy, one)[1] for one in EXAMPLES}
    assert len(found) == 6 and {ids for ids, _ in found} == set(expected)
    for ids, pixels in found:
        assert torch.equal(pixels, expected[ids])


def prompts_of(policy, inputs):
    """The prompts of a training batch: what is attended to before the first token with a loss."""
    before_loss = (inputs["labels"] != -100).cumsum(dim=1) == 0
    return unpadded(inputs["input_ids"], before_loss & inputs["attention_mask"].bool())


@pytest.fixture(scope="module")
def sft_batch(policy, load, make_context):
    """What SFT's forward gets for the three examples."""
    trainer = CompletionSftTrainer(
        policy=load(policy.style.name),
        context=make_context(examples=EXAMPLES),
        method=Sft(examples_per_step=3, micro_batch_size=3, trl={"max_steps": 1}),
    )
    return trainer.data_collator([trainer.train_dataset[index] for index in range(3)])


def test_sft_trains_on_the_prompt(policy, sft_batch):
    assert prompts_of(policy, sft_batch) == [reference(policy, one)[0] for one in EXAMPLES]
    for one, pixels in zip(EXAMPLES, pixels_by_row(sft_batch), strict=True):
        assert torch.equal(pixels, reference(policy, one)[1])


def test_sft_learns_the_completion_and_its_end_alone(policy, sft_batch):
    for labels in sft_batch["labels"]:
        learned = policy.tokenizer.decode(labels[labels != -100])
        assert learned == ANSWERS[policy.style.name] + END_TOKENS[policy.style.name]


WORKED = {
    "base": "I see one. Wait, two.</think>\n<answer>(B)</answer>",
    "instruct": "<think>I see one. Wait, two.</think>\n<answer>(B)</answer>",
}


@pytest.mark.parametrize("kind", KINDS)
def test_sft_imitates_a_thought_before_the_answer(load, make_context, kind):
    policy = load(kind)
    worked = [replace(one, thought=" I see one. Wait, two.\n") for one in EXAMPLES]
    trainer = CompletionSftTrainer(
        policy=policy,
        context=make_context(examples=worked),
        method=Sft(examples_per_step=3, micro_batch_size=3, imitate="thought", trl={"max_steps": 1}),
    )
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(3)])
    assert prompts_of(policy, batch) == [reference(policy, one)[0] for one in EXAMPLES]
    for labels in batch["labels"]:
        assert policy.tokenizer.decode(labels[labels != -100]) == WORKED[kind] + END_TOKENS[kind]


def test_a_thought_that_is_not_there_is_not_imitated(policy):
    with pytest.raises(ValueError, match=r"^How many .* has no thought to imitate"):
        sft_row(policy, EXAMPLES[0], imitate="thought")


def test_sft_completes_the_prompt_that_a_rollout_completes(policy, sft_batch):
    row = sft_row(policy, EXAMPLES[0])
    assert row["prompt"][0]["content"] == policy.style.text(EXAMPLES[0])
    assert isinstance(row["images"], Sequence) and len(row["images"]) == 1
    ids, labels = sft_batch["input_ids"][0], sft_batch["labels"][0]
    learned = (labels != -100).nonzero()[:, 0]
    assert ids[: learned[0]].tolist() == reference(policy, EXAMPLES[0])[0]
    assert torch.equal(ids[learned], labels[learned])
