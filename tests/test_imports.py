"""Data flows one way: a package may import those named beside it, and nothing above them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "fulgurite"
RECORDS = {"types", "seeding", "timing"}
MAY_IMPORT = {
    "types": set(),
    "seeding": set(),
    "timing": set(),
    "schedules": set(),
    "run_record": set(),
    "metrics": {"types"},
    "compare": {"types", "callbacks"},
    "browse": {"types", "callbacks"},
    "parallel": set(),
    "credit": {"types"},
    "selection": {"types"},
    "losses": {"types"},
    "models": {"types"},
    "guards": {"types"},
    "rewards": set(),
    "tasks": {"types", "seeding", "rewards"},
    "engines": {"types", "seeding", "models"},
    "data": {"types", "seeding", "parallel", "credit", "selection", "guards", "models", "engines", "tasks", "rewards"},
    "modules": RECORDS | {"schedules", "parallel", "guards", "metrics", "credit", "selection", "losses", "models"},
    "budget": {"types", "parallel", "models", "engines", "data", "modules"},
    "command_errors": {"types", "guards", "engines"},
    "config_parser": {"command_errors", "types", "engines", "modules", "data", "tasks", "callbacks"},
    "trainer_cli": {
        "command_errors",
        "config_parser",
        "budget",
        "types",
        "parallel",
        "run_record",
        "guards",
        "models",
        "modules",
        "data",
        "callbacks",
    },
    "config_only": {"data", "modules", "trainer_cli"},
    "commands": {
        "command_errors",
        "budget",
        "types",
        "run_record",
        "compare",
        "browse",
        "models",
        "modules",
        "engines",
        "guards",
        "rewards",
        "data",
        "metrics",
        "callbacks",
        "config_only",
    },
    "callbacks": RECORDS | {"parallel", "guards", "credit", "selection", "data", "modules", "metrics"},
}
TOP = {"cli", "__init__", "__main__"}


def imported(path: Path) -> set[str]:
    """First parts below fulgurite of everything a file imports, in functions and under TYPE_CHECKING too."""
    package = path.relative_to(SOURCE.parent).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = base + (node.module.split(".") if node.module else [])
            names = [module] if len(module) > 1 else [module + [alias.name] for alias in node.names]
        found |= {name[1] for name in names if name[0] == "fulgurite" and len(name) > 1}
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_one_way(path):
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if room in TOP:
        return
    assert room in MAY_IMPORT, f"give {room} a row in MAY_IMPORT"
    assert imported(path) - {room} <= MAY_IMPORT[room]


def test_the_table_has_no_cycle():
    seen: list[str] = []
    left = dict(MAY_IMPORT)
    while left:
        ready = [room for room, needs in left.items() if needs <= set(seen)]
        assert ready, f"cycle among {sorted(left)}"
        seen += ready
        left = {room: needs for room, needs in left.items() if room not in ready}


def test_the_picture_shows_the_table():
    sys.path.insert(0, str(SOURCE.parents[1] / "tools"))
    from draw_flow import PICTURE, draw

    assert PICTURE.read_text() == draw(MAY_IMPORT), "run python tools/draw_flow.py"


def test_one_file_imports_vllm():
    def imports_it(node: ast.AST) -> bool:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        return any(name.split(".")[0] == "vllm" for name in names)

    found = {path.name for path in SOURCE.rglob("*.py") if any(map(imports_it, ast.walk(ast.parse(path.read_text()))))}
    assert found == {"vllm_engine.py"}


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, fulgurite, fulgurite.cli; print([m for m in ('torch', 'transformers', 'lightning') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_stay_short(path):
    assert len(path.read_text().splitlines()) < 500
