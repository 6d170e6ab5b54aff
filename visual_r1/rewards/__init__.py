"""Rewards, one a file: a frozen dataclass that maps a rollout to a score in [0, 1].

A reward knows no torch, no trl and no tracker. A malformed completion scores 0.0 by an explicit branch; a wrong setting
raises a ``ValueError`` when the reward is built, before any model is loaded. To add one, write ``rewards/x.py`` and
``conf/reward/term/x.yaml``; the tests find the YAML by themselves.
"""
