"""docs/speed.md: its flags are those of the update, with their defaults, and its command turns all of them off."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from benchmarks.updates import FLAGS, stock_flags
from visual_r1.config import compose_config, resolve

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "speed.md").read_text()


def test_the_flags_of_the_page_are_those_of_the_update():
    named = dict(re.findall(r"^\| `([\w.]+)` \| (\w+) \|", PAGE, re.MULTILINE))
    config = resolve(compose_config(["rollout=vllm_colocate"]))
    actual = {name: config["method"][name] for name in FLAGS}
    actual["rollout.engine.push_changed_only"] = config["rollout"]["engine"]["push_changed_only"]
    assert named == {name: "null" if value is None else str(value).lower() for name, value in actual.items()}


def test_the_command_for_stock_trl_turns_every_flag_off():
    [command] = re.findall(r"^```bash\npython run\.py (.*?)\n```$", PAGE, re.MULTILINE)
    assert resolve(compose_config(shlex.split(command)))["method"] == resolve(compose_config(stock_flags()))["method"]
