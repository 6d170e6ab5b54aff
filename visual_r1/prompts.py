"""Every prompt, once: rollout, SFT and evaluation render an example here and nowhere else.

Source of the wording: VisualThinker-R1-Zero (arXiv 2503.05132) and its released code. The paper's base prompt never
names ``</think>`` or ``<answer>``: the policy has to find the format by exploration.
"""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class PromptStyle:
    """How an example is put to a policy, and how an answer to it is written down."""

    name: str
    template: str
    """The user's text; ``{question}`` stands for the example's question."""
    opens_think: bool
    """The prompt ends in ``<think>``: the completion starts inside the thought."""
    chat_template: str | None
    """Replaces the processor's chat template; None keeps the checkpoint's own."""

    def text(self, example: Example) -> str:
        """The user's text for an example, without images and chat mark-up."""
        # Not str.format: a question may hold braces.
        return self.template.replace("{question}", example.question)

    def messages(self, example: Example) -> list[dict[str, Any]]:
        """The prompt as a conversation whose images come first, as in Qwen2-VL's own prompts."""
        images = [{"type": "image", "image": image} for image in example.images]
        return [{"role": "user", "content": [*images, {"type": "text", "text": self.text(example)}]}]

    def answer_only(self, example: Example) -> str:
        """The completion that SFT imitates: the solution in its tags and no reasoning."""
        answer = f"<answer>{example.solution_as_written or f'({example.solution})'}</answer>"
        return f"</think>\n{answer}" if self.opens_think else answer


_BASE = (
    "A conversation between User and Assistant. The user asks a question about the image, and the Assistant solves it. "
    "The assistant first thinks about the reasoning process in the mind and then provides the user with the answer.\n"
    "User: {question} \nAssistant: Let me solve this step by step.\n<think>"
)
_INSTRUCT = (
    "{question}  Output the thinking process in <think> </think> and final answer (option) in <answer> </answer> tags."
)

PROMPT_STYLES = {
    style.name: style
    for style in (
        PromptStyle(name="base", template=_BASE, opens_think=True, chat_template=ROLELESS_CHAT_TEMPLATE),
        PromptStyle(name="instruct", template=_INSTRUCT, opens_think=False, chat_template=None),
    )
}
