# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""What is built is complete, is described as the registry wants it, and works where nothing else is installed."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from PIL import Image

import trl_progrpo


ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOT_SOURCE = shutil.ignore_patterns(
    ".*", "build", "dist", "outputs", "wandb", "runs", "*.egg-info", "__pycache__", "trl-progrpo-output"
)


def run(*command, **kwargs):
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, **kwargs)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The folder with sdist and wheel, the wheel built from the sdist; without build isolation, so without a network."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("needs setuptools in the environment")
    folder = tmp_path_factory.mktemp("built")
    # Of a copy, for setuptools writes beside the source.
    shutil.copytree(ROOT, folder / "source", ignore=NOT_SOURCE)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "source")
    return folder / "dist"


@pytest.fixture(scope="session")
def wheel(built):
    (path,) = built.glob("*.whl")
    return path


class TestBuilt:
    def test_names_and_description(self, built):
        version = trl_progrpo.__version__
        assert sorted(path.name for path in built.iterdir()) == [
            f"trl_progrpo-{version}-py3-none-any.whl",
            f"trl_progrpo-{version}.tar.gz",
        ]
        run(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir())

    def test_the_wheel_has_the_package_and_nothing_else(self, wheel):
        names = set(zipfile.ZipFile(wheel).namelist())
        package = {name for name in names if name.startswith("trl_progrpo/")}
        assert all(re.match(r"trl_progrpo-[\d.]+\.dist-info/", name) for name in names - package)
        source = {
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / "trl_progrpo").rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert package == source
        for name in (
            "py.typed",
            "templates/model_card.md",
            "templates/report.html",
            "tiny/model/model_index.json",
            "tiny/model/transformer/diffusion_pytorch_model.safetensors",
            "tiny/model/preview_decoder/diffusion_pytorch_model.safetensors",
        ):
            assert f"trl_progrpo/{name}" in package

    def test_the_sdist_has_what_its_tests_and_docs_need(self, built):
        (path,) = built.glob("*.tar.gz")
        with tarfile.open(path) as archive:
            names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
        for name in (
            "CITATION.cff",
            "CHANGELOG.md",
            "constraints.txt",
            "mkdocs.yml",
            "tests/conftest.py",
            "docs/index.md",
        ):
            assert name in names
        assert not {name for name in names if name.startswith((".git", ".venv")) or "__pycache__" in name}


@pytest.mark.slow
class TestCleanEnvironment:
    """The wheel in an environment that has only what the wheel asks for, away from the checkout."""

    @pytest.fixture(scope="class")
    def clean(self, wheel, tmp_path_factory):
        folder = tmp_path_factory.mktemp("clean")
        venv.create(folder / "venv", with_pip=True)
        scripts = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
        constraints = ("--constraint", ROOT / "constraints.txt")
        run(scripts / "python", "-m", "pip", "install", "--quiet", *constraints, wheel, cwd=folder)
        return scripts

    def run(self, clean, *command, cwd):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return run(clean / command[0], *command[1:], cwd=cwd, env={**environment, "HF_HUB_OFFLINE": "1"})

    def test_nothing_is_missing_and_nothing_contradicts(self, clean, tmp_path):
        self.run(clean, "python", "-m", "pip", "check", cwd=tmp_path)

    def test_the_installed_package_is_meant(self, clean, tmp_path):
        file = self.run(clean, "python", "-c", "import trl_progrpo; print(trl_progrpo.__file__)", cwd=tmp_path)
        assert Path(file.strip()).is_relative_to(clean.parent)

    def test_env(self, clean, tmp_path):
        told = self.run(clean, "trl-progrpo", "env", cwd=tmp_path)
        assert re.search(rf"trl_progrpo version: {re.escape(trl_progrpo.__version__)}", told)

    def test_a_first_grid(self, clean, tmp_path):
        self.run(clean, "trl-progrpo", "sample", "--model_name_or_path", "shapes", cwd=tmp_path)
        assert Image.open(tmp_path / "grid.png").size[0] > 100

    def test_a_first_adapter(self, clean, tmp_path):
        flags = (
            "--model_name_or_path shapes --dataset_name shapes --reward_funcs shapes --num_generations 4 --max_steps 1"
        )
        flags += " --per_device_train_batch_size 8 --eval_samples 4 --use_cpu --report_to none --output_dir out"
        self.run(clean, "trl-progrpo", "train", *flags.split(), cwd=tmp_path)
        assert (tmp_path / "out" / "pytorch_lora_weights.safetensors").is_file()
        assert (tmp_path / "out" / "report.html").is_file()


def requirements(entries):
    return {re.match(r"[\w.-]+", entry)[0].lower(): entry for entry in entries}


IMPORTED_AS = {
    "pillow": "PIL",
    "pyyaml": "yaml",
    "huggingface-hub": "huggingface_hub",
    "python-multipart": "multipart",
}
# Belong to the interface of a declared one: of datasets, fastapi, jinja2 and transformers.
BELONG = {"pyarrow", "pydantic", "markupsafe", "tokenizers"}
# Only asked whether they are there, or used where the trackers or the launcher that the user has chosen have brought them.
IF_THERE = {"deepspeed", "tensorboard", "torchvision", "trackio", "wandb"}


def imports(file):
    """Top-level names that a file imports from elsewhere, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


def test_everything_imported_is_declared():
    """What only some other package happens to bring is missing elsewhere, or comes in another version."""
    extras = [entry for group in PROJECT["optional-dependencies"].values() for entry in group]
    declared = {IMPORTED_AS.get(name, name) for name in requirements([*PROJECT["dependencies"], *extras])}
    allowed = declared | BELONG | IF_THERE | set(sys.stdlib_module_names) | {"trl_progrpo"}
    files = list((ROOT / "trl_progrpo").rglob("*.py"))
    assert len(files) > 80
    found = {(name, file.relative_to(ROOT).as_posix()) for file in files for name in imports(file)}
    assert sorted(pair for pair in found if pair[0] not in allowed) == []


def test_every_dependency_has_a_lower_bound_and_no_upper_one():
    """An upper bound of a library keeps its users from every release of all others; constraints.txt has what is tested."""
    for entry in requirements(PROJECT["dependencies"]).values():
        assert re.fullmatch(r"[\w.-]+>=[\d.]+", entry), entry


def test_constraints_lie_within_the_bounds():
    from packaging.requirements import Requirement

    extras = [entry for group in PROJECT["optional-dependencies"].values() for entry in group]
    known = requirements([*PROJECT["dependencies"], *extras])
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert {"torch", "trl", "transformers", "diffusers", "mkdocs", "twine"} <= {pin.name for pin in pinned}
    for pin in pinned:
        (version,) = [specifier.version for specifier in pin.specifier]
        if pin.name in known:
            assert version in Requirement(known[pin.name]).specifier, pin


def test_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert str(citation["version"]) == trl_progrpo.__version__
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == PROJECT["authors"]
    card = (ROOT / "trl_progrpo/templates/model_card.md").read_text(encoding="utf-8")
    paper = citation["preferred-citation"]
    assert paper["identifiers"][0]["value"].removeprefix("arXiv:") in card
    assert " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]) in card


def test_the_changelog_has_this_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{trl_progrpo.__version__}]" in changelog or "## [Unreleased]" in changelog
