"""Imports go one way: the floors of the house, read from the code's own text."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("pallas_kernels", "sixbit_jax", "convert", "benchmarks")
# Rooms of the package, lowest first; those of one row may use each other's interfaces.
FLOORS = {
    "pallas_kernels": 0,
    "sixbit_jax": 1,
    "convert": 2,
    "sixbit_jax.commands": 3,
    "sixbit_jax.cli": 3,
    "benchmarks": 4,
}
# The public name `sixbit_jax.fuse_lora` stands for the converter's function, and is
# loaded on first use.
EXCEPTIONS = {("sixbit_jax", "convert.fuse")}
# Within the package: (room, rooms that it must not use).
FORBIDDEN = {
    "sixbit_jax.formats": ("nn", "models", "quantizers", "methods", "sampling"),
    "sixbit_jax.nn": ("models", "sampling", "methods", "pipelines", "checkpoint"),
    "sixbit_jax.models": ("sampling", "methods", "pipelines", "checkpoint"),
    "sixbit_jax.policies": ("models", "sampling", "methods", "pipelines"),
    "sixbit_jax.sampling": (
        "methods",
        "pipelines",
        "checkpoint",
        "text_encoders",
        "vae",
    ),
    "sixbit_jax.vae": ("sampling", "pipelines", "methods", "text_encoders"),
    "sixbit_jax.text_encoders": ("sampling", "pipelines", "methods", "vae"),
    "sixbit_jax.quantizers": ("methods", "sampling", "tuning"),
}


def modules() -> dict[str, Path]:
    files = [f for package in PACKAGES for f in (ROOT / package).rglob("*.py")]
    return {
        ".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f
        for f in files
    }


MODULES = modules()


def imports(file: Path) -> set[str]:
    """Names of our modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name for name in names if name in MODULES}
    return found


IMPORTS = {name: imports(file) for name, file in MODULES.items()}


def room_of(name: str) -> str:
    """The room of a module of the package; empty for others."""
    package, _, rest = name.partition(".")
    return rest.partition(".")[0] if package == "sixbit_jax" else ""


def floor(name: str) -> int:
    fitting = [p for p in FLOORS if name == p or name.startswith(f"{p}.")]
    return FLOORS[max(fitting, key=len)]


def test_nothing_imports_from_a_floor_above():
    upward = {
        (name, used)
        for name, found in IMPORTS.items()
        for used in found
        if floor(used) > floor(name)
    }
    assert upward <= EXCEPTIONS


def test_rooms_do_not_reach_into_those_that_build_on_them():
    wrong = [
        (name, used)
        for room, rooms in FORBIDDEN.items()
        for name, found in IMPORTS.items()
        if name == room or name.startswith(f"{room}.")
        for used in found
        if room_of(used) in rooms
    ]
    assert wrong == []


def test_files_form_no_circle():
    """Packages' `__init__` files are read as lists of names, not as users of them."""
    plain = {n for n, file in MODULES.items() if file.name != "__init__.py"}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name in done:
            return
        for used in sorted(IMPORTS[name] & plain):
            visit(used, (*path, name))
        done.add(name)

    for name in sorted(plain):
        visit(name, ())


def test_networks_are_not_probed():
    """The contract says what a network has; nobody asks with `hasattr`."""
    rooms = ("sampling", "methods", "commands", "tuning", "pipelines", "calibration")
    found = [
        f"{name}:{node.lineno}"
        for name, file in MODULES.items()
        if room_of(name) in rooms
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "hasattr"
    ]
    assert found == []


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_tests_use_no_private_names_of_benchmarks():
    found = []
    for file in (ROOT / "tests").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        modules = set()
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            if not node.module.startswith("benchmarks"):
                continue
            modules |= {alias.asname or alias.name for alias in node.names}
            found += [f"{file.name}: {a.name}" for a in node.names if private(a.name)]
        found += [
            f"{file.name}:{node.lineno}: {node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in modules
            and private(node.attr)
        ]
    assert found == []


def test_pages_that_are_named_are_in_the_repository():
    """No reference to notes that only their authors have."""
    pages = re.compile(r"\b[\w-]+\.md\b|\bDESIGN\b")
    known = {file.name for file in ROOT.rglob("*.md")}
    known |= {"report.md", "dvd.md"}  # written by a study, and by its test
    folders = (*PACKAGES, "tests", "docs")
    named = {
        (file.name, word)
        for folder in folders
        for suffix in ("*.py", "*.md")
        for file in (ROOT / folder).rglob(suffix)
        for word in pages.findall(file.read_text(encoding="utf-8"))
    }
    assert {(file, word) for file, word in named if word not in known} == set()
