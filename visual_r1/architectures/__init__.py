"""The architectures that we prove ourselves on: true configurations and tokenizer, random weights."""
