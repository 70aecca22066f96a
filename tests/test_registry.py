# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.

import subprocess
import sys

import pytest

from trl_progrpo.policies import DDIM, POLICIES, DanceSDE, FlowCPS, FlowSDE
from trl_progrpo.pruning import PRUNING_RULES
from trl_progrpo.registry import Registry


@pytest.fixture
def registry():
    registry = Registry("colour", "trl_progrpo_test.colours")

    @registry.register("vermilion")
    def vermilion():
        return "red"

    @registry.register("azure")
    def azure():
        return "blue"

    return registry


@pytest.fixture
def published(tmp_path, monkeypatch):
    """An installed package that publishes the colour `umber`."""
    (tmp_path / "paintbox.py").write_text(
        "class Shades:\n    dark = 'very dark'\n\ndef umber():\n    return 'brown'\n"
    )
    (tmp_path / "paintbox_broken.py").write_text("import a_module_that_is_not_installed\n")
    info = tmp_path / "paintbox-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: paintbox\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[trl_progrpo_test.colours]\number = paintbox:umber\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("paintbox", "paintbox_broken"):
        sys.modules.pop(name, None)


def test_registered_names(registry):
    assert registry.get("azure")() == "blue"
    assert registry.names() == ["azure", "vermilion"]


def test_entry_points_are_listed_unloaded_and_loaded_on_demand(registry, published):
    assert registry.names() == ["azure", "umber", "vermilion"]
    assert "paintbox" not in sys.modules
    assert registry.get("umber")() == "brown"


@pytest.mark.parametrize("path", ["paintbox:umber", "paintbox.umber"])
def test_dotted_paths(registry, published, path):
    assert registry.get(path)() == "brown"


def test_a_path_may_name_a_nested_attribute(registry, published):
    assert registry.get("paintbox:Shades.dark") == "very dark"


def test_unknown_name_lists_the_known_and_the_nearest(registry):
    with pytest.raises(ValueError, match=r"unknown colour 'vermillion'.*did you mean 'vermilion'.*azure, vermilion"):
        registry.get("vermillion")


@pytest.mark.parametrize(
    "name", ["no.such.module", "nosuch:thing", "paintbox:missing", ".relative", "", ":x", "x:", "os."]
)
def test_whatever_does_not_resolve_is_a_value_error(registry, published, name):
    with pytest.raises(ValueError, match="unknown colour"):
        registry.get(name)


def test_a_missing_dependency_is_not_reported_as_an_unknown_name(registry, published):
    with pytest.raises(
        ValueError, match=r"cannot be imported \(.*a_module_that_is_not_installed.* line \d+ of .*; install"
    ):
        registry.get("paintbox_broken:anything")


def test_a_name_is_taken_once(registry):
    with pytest.raises(ValueError, match="'azure' is already"):
        registry.register("azure")(len)


def test_registering_the_same_definition_again_replaces_it():
    registry = Registry("thing", "none")

    def make():
        @registry.register("it")
        def it():
            pass

        return it

    make()
    second = make()
    assert registry.get("it") is second


def test_the_package_registers_its_own():
    assert {name: POLICIES.get(name) for name in POLICIES.names()} == {
        "dance_sde": DanceSDE,
        "ddim": DDIM,
        "flow_cps": FlowCPS,
        "flow_sde": FlowSDE,
    }
    assert PRUNING_RULES.names() == ["none", "ovf", "random", "top_bottom", "top_k"]


def test_importing_the_registry_does_not_import_torch():
    code = "import sys, trl_progrpo.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
