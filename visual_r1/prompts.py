"""Every prompt, once: rollout, SFT and evaluation render an example here and nowhere else.

Source of the wording: VisualThinker-R1-Zero (arXiv 2503.05132) and its released code. The paper's base prompt never
names ``</think>`` or ``<answer>``: the policy has to find the format by exploration.

A style is chosen by two words: how a model is talked to (``base``: plain text without roles; ``instruct``: its chat
template) and the wording (``clean``: one prompt for training and evaluation; ``paper``: what the released code fed its
model, slips included; ``sft_reference``: what its SFT script did, for ``method=sft_reference`` alone).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from visual_r1.examples import Example

# A base model knows no roles. trl refuses a plain string beside an image, so the message is rendered by a template that
# adds nothing but the image's place; whatever text stands in the message reaches the model byte for byte.
ROLELESS_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% endfor %}"
)


# Qwen2-VL's own, for the one recipe that forces it on a base model, whose checkpoint has a template without roles.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class PromptStyle:
    """How an example is put to a policy, and how an answer to it is written down."""

    name: str
    """How the model is talked to: ``base`` or ``instruct``."""
    wording: str
    """Which text it is given: ``clean``, ``paper`` or ``sft_reference``."""
    template: str
    """The user's text; ``{question}`` stands for the example's question."""
    evaluation_template: str | None = None
    """The user's text on a benchmark, where the paper's code used another; None uses `template`."""
    opens_think: bool
    """The prompt ends in ``<think>``: the completion starts inside the thought."""
    chat_template: str | None
    """Replaces the processor's chat template; None keeps the checkpoint's own."""
    answers_in_tags: bool = True
    """SFT writes the solution inside ``<answer>``; False writes it bare, as the paper's SFT did."""

    def for_evaluation(self) -> PromptStyle:
        """The style that a benchmark uses: this one, unless the paper's code evaluated with another prompt."""
        if self.evaluation_template is None:
            return self
        return replace(self, template=self.evaluation_template, evaluation_template=None)

    def text(self, example: Example) -> str:
        """The user's text for an example, without images and chat mark-up."""
        # Not str.format: a question may hold braces.
        return self.template.replace("{question}", example.question)

    def messages(self, example: Example) -> list[dict[str, Any]]:
        """The prompt as a conversation whose images come first, as in Qwen2-VL's own prompts."""
        images = [{"type": "image", "image": image} for image in example.images]
        return [{"role": "user", "content": [*images, {"type": "text", "text": self.text(example)}]}]

    def answer_only(self, example: Example) -> str:
        """The completion that SFT imitates: the solution, in its tags unless the style says otherwise, no reasoning."""
        answer = example.solution_as_written or f"({example.solution})"
        if not self.answers_in_tags:
            return answer
        answer = f"<answer>{answer}</answer>"
        return f"</think>\n{answer}" if self.opens_think else answer

    def worked(self, example: Example) -> str:
        """The completion that SFT imitates with its reasoning: the example's thought, then the solution.

        Raises:
            ValueError: the data has no thought for this example.
        """
        if example.thought is None:
            raise ValueError(f"{example.id}: has no thought to imitate")
        answer = self.answer_only(example)
        if self.opens_think:
            return f"{example.thought.strip()}{answer}"
        return f"<think>{example.thought.strip()}</think>\n{answer}"


_BASE = (
    "A conversation between User and Assistant. The user asks a question about the image, and the Assistant solves it. "
    "The assistant first thinks about the reasoning process in the mind and then provides the user with the answer.\n"
    "User: {question} \nAssistant: Let me solve this step by step.\n<think>"
)
_INSTRUCT = (
    "{question}  Output the thinking process in <think> </think> and final answer (option) in <answer> </answer> tags."
)
_INSTRUCT_EVALUATION = (
    "{question}\nOutput the thinking process in <think> </think> and final answer in <answer> </answer> tags."
)

PROMPT_STYLES = {
    style.name: style
    for style in (
        PromptStyle(
            name="base", wording="clean", template=_BASE, opens_think=True, chat_template=ROLELESS_CHAT_TEMPLATE
        ),
        PromptStyle(name="instruct", wording="clean", template=_INSTRUCT, opens_think=False, chat_template=None),
    )
}
"""The clean styles by name."""

# The released code builds a training question as "<image> Answer in natural language. ...": the base prompt takes the
# literal <image> out, keeps the blank after it, and puts <image> before everything; the instruct prompt leaves both.
_PAPER_STYLES = {
    "base": replace(
        PROMPT_STYLES["base"],
        wording="paper",
        template="<image>" + _BASE.replace("{question}", " {question}"),
        evaluation_template="<image>" + _BASE,
    ),
    "instruct": replace(
        PROMPT_STYLES["instruct"],
        wording="paper",
        template="<image> " + _INSTRUCT,
        evaluation_template=_INSTRUCT_EVALUATION,
    ),
}

SFT_REFERENCE = PromptStyle(
    name="instruct",
    wording="sft_reference",
    template="<image> {question}",
    evaluation_template=_INSTRUCT_EVALUATION,
    opens_think=False,
    chat_template=CHAT_TEMPLATE,
    answers_in_tags=False,
)

WORDINGS = {
    "clean": PROMPT_STYLES,
    "paper": _PAPER_STYLES,
    "sft_reference": {SFT_REFERENCE.name: SFT_REFERENCE},
}


def prompt_style(name: str, wording: str) -> PromptStyle:
    """The style of that name and wording.

    Raises:
        ValueError: there is none.
    """
    if wording not in WORDINGS:
        raise ValueError(f"model.prompt={wording}: unknown, expected clean or paper")
    if name not in WORDINGS[wording]:
        raise ValueError(f"model.style={name}: unknown, expected one of {sorted(WORDINGS[wording])}")
    return WORDINGS[wording][name]
