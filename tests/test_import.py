# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.

import subprocess
import sys

import pytest

import trl_progrpo


SCRIPT = """
import sys, time
before = set(sys.modules)
start = time.perf_counter()
import trl_progrpo{more}
seconds = time.perf_counter() - start
heavy = ("torch", "numpy", "transformers", "diffusers", "trl", "peft", "accelerate", "datasets", "PIL", "matplotlib")
loaded = sorted(name for name in heavy if name in set(sys.modules) - before)
print(seconds, *loaded)
"""


def import_in_a_fresh_process(more=""):
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(more=more)], capture_output=True, text=True, check=True)
    seconds, *loaded = done.stdout.split()
    return float(seconds), loaded


def test_import_is_instant(capsys):
    runs = [import_in_a_fresh_process() for _ in range(5)]
    best = min(seconds for seconds, _ in runs)
    with capsys.disabled():
        print(f"\n  import trl_progrpo: {1000 * best:.1f} ms")
    assert [loaded for _, loaded in runs] == [[]] * 5
    assert best < 0.3


def test_light_modules_import_no_library():
    _, loaded = import_in_a_fresh_process(".registry, trl_progrpo.timing, trl_progrpo.tiny")
    assert loaded == []


def test_the_mathematics_imports_torch_and_nothing_else():
    modules = ("types", "seeds", "policies", "pruning", "advantages", "losses", "metrics", "windows")
    _, loaded = import_in_a_fresh_process(", ".join(f"{'' if m == 'types' else 'trl_progrpo'}.{m}" for m in modules))
    assert set(loaded) <= {"torch", "numpy"}


@pytest.mark.parametrize("name", trl_progrpo.__all__)
def test_every_public_name_is_there(name):
    assert getattr(trl_progrpo, name) is not None
    assert name in dir(trl_progrpo)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'trl_progrpo' has no attribute 'ProGRPO'"):
        trl_progrpo.ProGRPO  # noqa: B018


def test_the_package_is_typed():
    from importlib.resources import files

    assert files("trl_progrpo").joinpath("py.typed").is_file()
