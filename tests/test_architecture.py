# Copyright 2026 The trl_progrpo authors. Licensed under the Apache License, Version 2.0.
"""Who may import whom, and what may stand where; read from the source, nothing is run."""

import ast
from pathlib import Path

import pytest

import trl_progrpo


ROOT = Path(trl_progrpo.__file__).parent
FILES = sorted(path for path in ROOT.rglob("*.py"))
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in FILES}

# From the bottom up; a module may import those of lower layers, and those beside it that belong to the same package.
LAYERS = [
    [
        "geometry",
        "isolation",
        "lettering",
        "manifest",
        "optimizers",
        "options",
        "registry",
        "seeds",
        "standard_streams",
        "timing",
        "types",
        "words",
    ],
    ["advantages", "losses", "metrics", "policies", "pruning", "windows", "tiny", "cost"],
    ["arithmetic", "audit", "families", "heldout", "out_of_memory", "overlap", "planning", "rewards", "spread"],
    [
        "activations",
        "dealing",
        "flops",
        "heartbeats",
        "inherited",
        "sampler",
        "reward_server",
        "sharding",
        "sharding_checks",
    ],
    [
        "_trl",
        "adapters",
        "callbacks",
        "checkpoint_folders",
        "data",
        "hub",
        "memory",
        "plots",
        "ranks",
        "recording",
        "stopping",
        "stopwatch",
    ],
    ["progrpo_config", "prompt_cache", "saving", "sharded_trainer", "validation"],
    ["model_card", "monitoring"],
    ["auto_schedule", "checkpoints", "evaluation", "trainer_checks"],
    ["loop"],
    ["progrpo_trainer", "testing"],
    ["calibration", "report"],
    ["cli"],
]
LAYER_OF = {name: level for level, names in enumerate(LAYERS) for name in names}
# Beside each other, and still allowed: a config has a base class.
BESIDE = {("progrpo_config", "_trl")}

MATHS = (
    "geometry", "registry", "seeds", "timing", "types", "advantages", "arithmetic", "audit", "cost", "dealing", "losses",
    "metrics", "overlap", "planning", "policies", "pruning", "windows", "words",
)  # fmt: skip
LIBRARIES = {"accelerate", "datasets", "diffusers", "huggingface_hub", "numpy", "peft", "PIL", "transformers", "trl"}


def part_of(file):
    """The module or subpackage directly below the root."""
    return file.split("/")[0].removesuffix(".py")


def imports_of(file, skip_type_checking=True):
    """`(module, name)` of every import; relative modules are spelled out from the root, and start with a dot."""
    skipped = set()
    for node in ast.walk(TREES[file]):
        if skip_type_checking and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped |= {id(child) for child in ast.walk(node)}
    package = file.split("/")[:-1]
    for node in ast.walk(TREES[file]):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                module = alias.name
                yield (
                    ("." + module.removeprefix("trl_progrpo").lstrip("."), "")
                    if module.split(".")[0] == "trl_progrpo"
                    else (module, "")
                )
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                base = package[: len(package) - node.level + 1]
                module = "." + ".".join([*base, *module.split(".")] if module else base)
            elif module.split(".")[0] == "trl_progrpo":
                module = "." + module.removeprefix("trl_progrpo").lstrip(".")
            for alias in node.names:
                yield module, alias.name


def own_imports(file):
    """Parts of the package that a file imports."""
    for module, name in imports_of(file):
        if module.startswith("."):
            part = module[1:].split(".")[0] or name
            # `from . import x` may also fetch a plain name of the package itself.
            if module[1:] or part in {part_of(other) for other in TREES}:
                yield part


def strings_and_names(tree):
    """String constants that are no docstrings, and identifiers."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node, node.value
        elif isinstance(node, ast.Name):
            yield node, node.id


def test_every_part_has_its_layer():
    parts = {part_of(file) for file in TREES} - {"__init__"}
    assert parts <= set(LAYER_OF), f"give {sorted(parts - set(LAYER_OF))} a place in LAYERS"


@pytest.mark.parametrize("file", TREES)
def test_imports_point_downwards(file):
    part = part_of(file)
    if part == "__init__":
        pytest.skip("the public names are imported when they are asked for")
    for other in own_imports(file):
        if other == part or (part, other) in BESIDE:
            continue
        assert other in LAYER_OF, f"{file} imports {other!r}, which has no layer"
        assert LAYER_OF[other] < LAYER_OF[part], f"{file} imports {other}, which is not below it"


@pytest.mark.parametrize("file", [file for file in TREES if part_of(file) in MATHS])
def test_mathematics_knows_torch_and_nothing_else(file):
    top = {
        module.split(".")[0] for module, _ in imports_of(file, skip_type_checking=False) if not module.startswith(".")
    }
    assert not top & LIBRARIES


@pytest.mark.parametrize("file", [f for f in TREES if part_of(f) in ("families", "rewards")])
def test_one_family_or_reward_does_not_import_the_other_kind(file):
    other = {"families": "rewards", "rewards": "families"}[part_of(file)]
    assert other not in set(own_imports(file))


@pytest.mark.parametrize("file", [file for file in TREES if file != "_trl.py"])
def test_private_names_of_the_trainers_come_through_the_seam(file):
    for module, name in imports_of(file, skip_type_checking=False):
        if module.split(".")[0] in ("trl", "transformers", "accelerate"):
            assert not any(part.startswith("_") for part in [*module.split("."), name]), f"{module}.{name}"
        if module.split(".")[0] == "trl":
            assert part_of(file) == "cli", f"{file} imports {module}: only the seam and the command line know TRL"


def test_nothing_outside_families_names_a_family():
    known = set()
    for file, tree in TREES.items():
        if part_of(file) == "families":
            classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name != "Family"]
            # An error is no family.
            known |= {node.name for node in classes if [ast.unparse(base) for base in node.bases] != ["ValueError"]}
            for node in ast.walk(tree):
                if isinstance(node, ast.Assign) and any(
                    getattr(t, "id", "") == "pipeline_classes" for t in node.targets
                ):
                    known |= {
                        constant.value for constant in ast.walk(node.value) if isinstance(constant, ast.Constant)
                    }
    assert {"StableDiffusion3Family", "StableDiffusion3Pipeline"} <= known
    for file, tree in TREES.items():
        # `tiny` builds and loads one particular pipeline.
        if part_of(file) in ("families", "tiny"):
            continue
        found = {text for _, text in strings_and_names(tree)} & known
        assert not found, f"{file} names {found}"


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield node, node.func.attr, ast.unparse(node.func.value)


def test_the_scheduler_of_diffusers_never_steps():
    for file, tree in TREES.items():
        for _, method, owner in calls(tree):
            stepped = method == "step" and "scheduler" in owner and "lr" not in owner
            assert not stepped or part_of(file) == "tiny", f"{file}: {owner}.step()"


def test_the_denoising_loop_is_in_the_sampler():
    """Where latents are started and advanced: nobody but the sampler draws them, and only the update predicts again."""
    starts = {file for file, tree in TREES.items() for _, method, _ in calls(tree) if method == "init_latents"}
    predicts = {file for file, tree in TREES.items() for _, method, owner in calls(tree) if method == "predict"}
    contract = {"testing.py"}
    assert {file for file in starts - contract if part_of(file) != "families"} == {"sampler.py"}
    assert {file for file in predicts - contract if part_of(file) != "families"} == {
        "sampler.py",
        "progrpo_trainer.py",
    }


def test_no_import_cycle_hides_behind_type_checking():
    for file in TREES:
        if part_of(file) == "__init__":
            continue
        hidden = set(imports_of(file, skip_type_checking=False)) - set(imports_of(file))
        for module, name in hidden:
            if module.startswith("."):
                assert name[:1].isupper() or name.startswith(("load", "verify", "shapes")), f"{file}: {module}.{name}"


@pytest.mark.parametrize("file", TREES)
def test_everything_public_has_a_docstring(file):
    tree = TREES[file]
    if not tree.body:
        return
    assert ast.get_docstring(tree), f"{file} has no docstring"
    missing = [
        node.name
        for node in tree.body
        if isinstance(node, (ast.ClassDef, ast.FunctionDef))
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not missing, f"{file}: {missing}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_say_whose_they_are(path):
    lines = path.read_text().splitlines()
    assert not lines or lines[0].startswith(("# Copyright 2026", '"""'))


def test_contributing_shows_the_layers():
    parts = {part_of(file) for file in TREES}
    rows = [
        "| " + ", ".join(f"`{name}`" for name in sorted(names) if name in parts) + " |" for names in reversed(LAYERS)
    ]
    page = (ROOT.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = page.split("| From the top down |\n|---|\n")[1].split("\n\n")[0]
    assert table.splitlines() == rows, "the table in CONTRIBUTING.md must be:\n" + "\n".join(rows)
