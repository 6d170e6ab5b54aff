"""Prompts become completions: one interface, one engine a file."""
