"""The rooms: imports go down the floors and never round, no room names a task, every module has its tests."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("lorun", "lorun_kernels")
# Files that docs/architecture.md lists on one floor may not import from a floor further down this list.
FLOORS = (
    (
        *("lorun.errors", "lorun.files", "lorun.tensor_files", "lorun.device", "lorun.tiling"),
        *("lorun.metrics", "lorun.step_predictor"),
    ),
    ("lorun.data", "lorun.physics", "lorun.denoisers", "lorun.adapters"),
    ("lorun.unfolding",),
    ("lorun.methods", "lorun.stage_report", "lorun.report"),
    ("lorun.tasks",),
    ("lorun.networks",),
    ("lorun.checkpoint",),
    ("lorun.zoo",),
    (
        "lorun.restore",
        "lorun.evaluate",
        "lorun.compression",
        "lorun.training",
        "lorun.restorer",
        "lorun.spectral_restorer",
    ),
    ("lorun.demo",),
    ("lorun.cli",),
)


def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            found[".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imported(name: str) -> set[str]:
    """The modules that a module imports, also inside functions; those only for types do not count."""
    tree = ast.parse(MODULES[name].read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            compiled = inside == {"lorun_kernels._C"}
            submodules = {module for module in inside if module in MODULES}
            found |= submodules or ({node.module} if not compiled else set())
    return {module for module in found if module in MODULES and module != name}


IMPORTS = {name: imported(name) for name in MODULES}


def floor_of(name: str) -> int | None:
    rooms = {room: number for number, floor in enumerate(FLOORS) for room in floor}
    return next((rooms[room] for room in rooms if name == room or name.startswith(f"{room}.")), None)


def test_every_module_has_a_floor():
    left = [name for name in MODULES if name.startswith("lorun.") and floor_of(name) is None]
    assert left == []


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("lorun.")])
def test_imports_go_down(name):
    for other in IMPORTS[name]:
        above = floor_of(other)
        assert above is None or above <= floor_of(name), f"{name} imports {other} from a floor above"


def test_lorun_uses_the_kernels_by_their_public_names():
    for name, others in IMPORTS.items():
        if name.split(".")[0] == "lorun":
            assert not [other for other in others if other.startswith("lorun_kernels.")], name
        else:
            assert not [other for other in others if other.split(".")[0] == "lorun"], name


def test_no_imports_go_round():
    seen: dict[str, int] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in seen:
            for other in sorted(IMPORTS[name]):
                visit(other, (*path, name))
            seen[name] = 1

    for name in MODULES:
        visit(name, ())


def test_nothing_outside_of_tasks_names_a_task():
    """The names of protocols in lorun/metrics.py aside."""
    for name, path in MODULES.items():
        if name.startswith("lorun.") and name != "lorun.metrics" and not name.startswith("lorun.tasks"):
            strings = [
                node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)
            ]
            assert not {"cs", "cassi", "sr"} & {value for value in strings if isinstance(value, str)}, path


def test_no_file_is_over_400_lines():
    for folder in (*PACKAGES, "benchmarks", "build_backend", "csrc", "examples", "tests"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".py", ".h", ".cpp", ".cu", ".cuh"}:
                assert len(path.read_text().splitlines()) <= 400, path


@pytest.mark.parametrize("name", [name for name, path in MODULES.items() if path.stem != "__init__"])
def test_every_module_has_tests_of_its_name(name):
    path = MODULES[name].relative_to(ROOT)
    stem = path.stem.removeprefix("_")
    assert list((ROOT / "tests" / path.parent).glob(f"test_{stem}*.py")), (
        f"no tests/{path.parent}/test_{stem}.py"
    )
