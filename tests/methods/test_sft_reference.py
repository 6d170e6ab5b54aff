"""method=sft_reference trains on what the paper's code trained on, and the trained policy says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from visual_r1.architectures.checkpoints import read_architecture
from visual_r1.architectures.tokenizer import build_tokenizer
from visual_r1.config import compose_config
from visual_r1.examples import Example
from visual_r1.methods.sft import CompletionSftTrainer, Sft, stop_at_turn_end, turn_end
from visual_r1.models import ModelSource, load_policy, save_policy
from visual_r1.prompts import SFT_REFERENCE

# As the released code's own lines rendered it (commit cd71978).
GOLDEN = Path(__file__).parents[1] / "golden" / "prompts" / "sft_reference-training.txt"
PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"


def example(name, question, answer, size=(84, 56)):
    return Example(
        id=name,
        images=(Image.linear_gradient("L").resize(size).convert("RGB"),),
        question=f"Answer in natural language. {question}",
        choices=("other", answer),
        solution="B",
        category="Count",
        solution_as_written=answer,
    )


EXAMPLES = [
    example("chairs", "How many chairs are there? Choose between the following options: 3, 2 or 4", "2"),
    example("cup", "Is the cup left of the plate?", "left, then right", size=(112, 112)),
]


def reference() -> Sft:
    """The method with its recipe's values, for the two examples at once."""
    trl = {"learning_rate": 1e-3, "max_steps": 1, "bf16": False}
    return Sft(examples_per_step=2, micro_batch_size=1, trl=trl, loss_on="text", prompt="sft_reference")


@pytest.fixture(scope="module", params=["base", "instruct"])
def trainer(request, load, make_context):
    policy = load(request.param).with_style(SFT_REFERENCE)
    return CompletionSftTrainer(policy=policy, context=make_context(examples=EXAMPLES), method=reference())


@pytest.fixture(scope="module")
def batch(trainer):
    """Both examples with their labels; the shorter one is padded."""
    return trainer.data_collator([trainer.train_dataset[index] for index in range(2)])


def text_of(one):
    return (
        GOLDEN.read_text().replace(EXAMPLES[0].question, one.question).replace("\n2<", f"\n{one.solution_as_written}<")
    )


def test_it_sees_what_the_released_code_showed(trainer, batch):
    assert trainer.processing_class.tokenizer.decode(batch["input_ids"][0]).startswith("<|im_start|>system\nYou are a ")
    for one, ids, mask in zip(EXAMPLES, batch["input_ids"], batch["attention_mask"], strict=True):
        # In one piece, as the released code tokenized it; trl does prompt and completion one by one.
        whole = trainer.processing_class(text=[text_of(one)], images=[list(one.images)])["input_ids"][0]
        assert ids[mask.bool()].tolist() == list(whole)
    assert (batch["attention_mask"] == 0).any()


def test_every_token_is_learned_but_padding_and_images(trainer, batch):
    tokenizer = trainer.processing_class.tokenizer
    for one, ids, mask, labels in zip(
        EXAMPLES, batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
    ):
        learned = labels != -100
        assert torch.equal(labels[learned], ids[learned])
        assert tokenizer.decode(ids[learned]) == text_of(one).replace(PLACEHOLDER, "")
        left_out = tokenizer.convert_ids_to_tokens(ids[mask.bool() & ~learned].tolist())
        assert set(left_out) == {"<|vision_start|>", "<|image_pad|>", "<|vision_end|>"} and len(left_out) > 3


def test_an_end_token_that_is_the_padding_too_is_learned(load, make_context):
    # Padding is told by the mask: by its number, nano-base would lose its end token.
    policy = load("base")
    method = Sft(examples_per_step=2, micro_batch_size=1, trl={"max_steps": 1}, loss_on="text")
    trainer = CompletionSftTrainer(policy=policy, context=make_context(examples=EXAMPLES), method=method)
    rows = trainer.data_collator([trainer.train_dataset[index] for index in range(2)])
    end = policy.tokenizer.eos_token_id
    assert end == policy.tokenizer.pad_token_id and turn_end(policy) == ""
    assert [(labels == end).sum().item() for labels in rows["labels"]] == [1, 1]


def test_each_example_weighs_the_same(load, make_context):
    policy, context = load(), make_context(examples=EXAMPLES)
    trainer = CompletionSftTrainer(policy=policy.with_style(SFT_REFERENCE), context=context, method=reference())
    means, lengths = [], []
    for index in range(2):
        rows = trainer.data_collator([trainer.train_dataset[index]])
        labels = rows.pop("labels")[0, 1:]
        with torch.no_grad():
            logits = policy.model(**rows.to(policy.model.device)).logits[0, :-1].cpu()
        means.append(torch.nn.functional.cross_entropy(logits, labels).item())
        lengths.append((labels != -100).sum().item())
    trainer.train()
    by_token = (means[0] * lengths[0] + means[1] * lengths[1]) / sum(lengths)
    assert abs(sum(means) / 2 - by_token) > 1e-3  # the two rules differ here
    assert context.tracker.steps[1]["loss"] == pytest.approx(sum(means) / 2, rel=1e-4)


@pytest.mark.parametrize("kind", ["base", "instruct"])
def test_the_trained_policy_is_asked_so_and_ends_where_a_turn_does(load, make_context, tmp_path, kind):
    trained, num_steps = reference().train(load(kind), make_context(examples=EXAMPLES))
    save_policy(trained, tmp_path / "model", num_steps=num_steps)
    again = load_policy(ModelSource(name="again", path=str(tmp_path / "model")))
    assert again.style == SFT_REFERENCE and again.processor.chat_template == SFT_REFERENCE.chat_template
    ends = again.tokenizer.convert_ids_to_tokens(list(again.end_token_ids))
    assert sorted(ends) == ["<|endoftext|>", "<|im_end|>"]


@pytest.mark.parametrize("kind", ["base", "instruct"])
def test_a_prompt_of_its_own_declares_no_other_end(load, kind):
    policy = load(kind)
    before = policy.model.generation_config.eos_token_id
    stop_at_turn_end(policy)
    assert policy.model.generation_config.eos_token_id == before


@pytest.fixture(scope="module")
def qwen():
    """The tokenizer of Qwen2-VL-2B, its own vocabulary included."""
    return build_tokenizer(**read_architecture("qwen2_vl_2b")["tokenizer"])


@pytest.mark.parametrize("answer", ["3", "left, then right", "Moved left", "10.5", "-2", "(B)", "'s", "椅子"])
def test_qwens_own_tokenizer_sees_the_text_in_one_piece_as_in_two(qwen, answer):
    # trl tokenizes prompt and completion one by one, the released code all at once.
    prompt, completion = "<|im_start|>assistant\n", f"{answer}<|im_end|>\n"
    assert qwen(prompt + completion)["input_ids"] == [
        token for part in (prompt, completion) for token in qwen(part)["input_ids"]
    ]


@pytest.mark.parametrize(("name", "value"), [("loss_on", "prompt"), ("prompt", "paper")])
def test_an_unknown_value_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"^method\.{name}={value}: unknown, expected"):
        Sft(examples_per_step=1, micro_batch_size=1, trl={}, **{name: value})


def test_the_recipe_is_this_one():
    method = compose_config(["method=sft_reference"]).method
    assert (method.loss_on, method.prompt, method.micro_batch_size) == ("text", "sft_reference", 1)
