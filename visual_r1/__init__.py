"""A laboratory for R1-Zero-style reinforcement learning of vision-language models."""

__version__ = "0.1.0"
