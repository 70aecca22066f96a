# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Killed 25 times wherever it is, a run ends as if nothing had happened."""

from collections import Counter

import pytest
from chaos import run_chaos
from dying import PHASES


@pytest.mark.slow
def test_killed_25_times_and_none_the_wiser(pipeline_path, tmp_path):
    outcome = run_chaos(pipeline_path, tmp_path, kills=25)
    print(outcome.table())
    assert outcome.differences == []
    assert all(kill.status == -9 for kill in outcome.kills)
    assert set(Counter(kill.phase for kill in outcome.kills)) == set(PHASES)
    # There was something to lose: work that was done again, and saves that never ended.
    assert outcome.rollouts_made > outcome.rollouts_whole
    assert any(kill.half for kill in outcome.kills)
    assert any(kill.newest > kill.resumed for kill in outcome.kills)
