# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Names on the Hub, asked of a real server on loopback by a fresh process: what is there, and what is not."""

import pytest
from hub_names import calls
from hub_server import TOKEN


@pytest.fixture(scope="module")
def asked(hub_world):
    """`(argv, token, parts, answer)` of every call."""
    made = calls(hub_world.root / "calls")
    return [(*call, answer) for call, answer in zip(made, hub_world.results["names"], strict=True)]


def test_what_may_not_be_read_is_one_sentence(asked):
    refused = [entry for entry in asked if not entry[1]]
    assert len(refused) == 10
    for argv, _, parts, (status, out, err) in refused:
        lines = [line for line in err.splitlines() if "error:" in line]
        assert (status, out, len(lines)) == (2, "", 1), (argv, out, err)
        assert all(part in lines[0] for part in parts), (argv, lines[0])
        assert "Traceback" not in err


def test_what_may_be_read_is(asked, hub_world):
    served = [entry for entry in asked if entry[1]]
    assert len(served) == 4
    for argv, _, parts, (status, out, err) in served:
        assert status == 0, (argv, err)
        assert all(part in out for part in parts), (argv, out)
    assert (hub_world.root / "calls" / "grid.png").stat().st_size > 1000
    said = served[-1][3][2]
    assert "'user/secret-lora' was trained on 'maker/other'; images of it on 'user/shapes' may differ." in said


def test_the_token_is_not_told(asked):
    assert not any(TOKEN in text for *_, (_, out, err) in asked for text in (out, err))
