"""A claim as a file: the runs it needs, what must be true of them, and the verdict that their intervals give."""
