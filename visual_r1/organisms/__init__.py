"""How nano, our model organism, is made from nothing: a Qwen2-VL of toy size and the small world it knows."""
