"""Measurements over rollouts, one a file: a frozen dataclass that maps rollouts to ``{name: value}``.

A measurement knows no torch and no tracker: the caller adds a prefix (``probe/``) and logs. A name whose rollouts are
none, such as the length of right completions when all are wrong, is absent; no value is ever NaN.
"""
