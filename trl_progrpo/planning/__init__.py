# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Which pruning schedule to use: what one can gain, and which one gains most. Knows torch and nothing else."""

from .gain import Gain, expected_gain, survivors
from .search import OBJECTIVES, Candidate, RecordedGroups, candidates, evaluate, propose
from .verdict import Option, break_even, verdict


__all__ = [
    "OBJECTIVES",
    "Candidate",
    "Gain",
    "Option",
    "RecordedGroups",
    "break_even",
    "candidates",
    "evaluate",
    "expected_gain",
    "propose",
    "survivors",
    "verdict",
]
