"""The three laws that a machine can check: imports point down, no cycles, no file that holds two
things."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "cai_jax"
# The first entry that a module's path begins with is its tier.
TIERS = [
    ("structs", 0),
    ("errors", 0),
    ("seeds", 0),
    ("runtime", 0),
    ("references", 0),
    ("core", 1),
    ("models", 2),
    ("data", 2),
    ("constitution", 2),
    ("io", 2),
    ("configuration", 2),
    ("engine", 3),
    ("rewards", 3),
    ("training", 3),
    ("textmodels", 3),
    ("evals", 4),
    ("report", 4),
    ("exporting", 4),
    ("microworld", 4),
    ("serving", 4),
    ("stages", 4),
    ("planning", 4),
    ("pipeline", 5),
    ("results", 5),
    ("export", 5),
    ("status", 5),
    ("notebook", 5),
    ("batch", 5),
    ("main", 6),
    ("plan", 6),
    ("serve", 6),
]
MAX_LINES = 500  # of a file
# io meets none of the others; the others may use data's tokens or a model's config, never in a
# circle.
INDEPENDENT = {"io"}


def modules():
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
    }


def tier(module: str) -> int:
    name = module.removeprefix("cai_jax.").split(".")[0]
    found = [number for prefix, number in TIERS if name == prefix]
    return found[0] if found else -1


def imported(path: pathlib.Path) -> set[str]:
    names, tree = set(), ast.parse(path.read_text())
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.If)
            and isinstance(node.test, ast.Name)
            and node.test.id == "TYPE_CHECKING"
        ):
            node.body = []  # for annotations only: nothing is imported when the program runs
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {
        name
        for name in names
        if name.split(".")[0] in ("cai_jax", "configs", "tensorflow", "torch")
    }


@pytest.mark.parametrize("module,path", sorted(modules().items()))
def test_imports_point_down(module, path):
    known = modules()
    for name in imported(path):
        assert name.split(".")[0] == "cai_jax", (
            f"{module} imports {name}: no configs, TensorFlow or torch in the package"
        )
        if name not in known or module.endswith("__init__"):
            continue
        assert tier(name) >= 0, f"{name} has no tier: add it to TIERS"
        assert tier(name) <= tier(module), (
            f"{module} (tier {tier(module)}) imports {name} (tier {tier(name)})"
        )
        parts, other = module.split("."), name.split(".")
        if parts[1] in INDEPENDENT and tier(name) == tier(module):
            assert other[1] == parts[1], f"{module} imports {name}: io stands alone in its tier"


def test_no_stage_imports_another():
    for module, path in modules().items():
        if module.startswith("cai_jax.stages.") and module != "cai_jax.stages.context":
            stages = {
                name
                for name in imported(path)
                if name.startswith("cai_jax.stages.") and name in modules()
            }
            assert stages <= {"cai_jax.stages.context"}, (
                f"{module} imports {stages}: stages meet in artefacts only"
            )


def test_no_cycles():
    graph = {
        module: {name for name in imported(path) if name in modules()}
        for module, path in modules().items()
    }
    done, trail = set(), []

    def visit(module):
        assert module not in trail, f"imports in a circle: {' → '.join([*trail, module])}"
        if module not in done:
            trail.append(module)
            for name in graph[module]:
                visit(name)
            done.add(trail.pop())

    for module in graph:
        visit(module)


@pytest.mark.parametrize(
    "path",
    sorted(
        path
        for folder in ("cai_jax", "configs", "tests", "launch", "benchmarks", "examples", "colab")
        for path in (ROOT / folder).rglob("*.py")
    ),
    ids=str,
)
def test_files_hold_one_thing(path):
    lines = path.read_text().count("\n")
    name = str(path.relative_to(ROOT))
    assert lines <= MAX_LINES, f"{name} has {lines} lines, more than {MAX_LINES}: split it"
