"""What an import costs, what it needs, and which way imports go."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import riemann_unlearn as ru

PACKAGE = Path(ru.__file__).parent
MODULES = {
    ".".join(("riemann_unlearn", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
ROOMS = (
    # From the foundation up; a room may import those of the rows before its own, and no others.
    ("_version", "_jit", "_yaml", "io", "processes", "registry"),
    ("options",),
    ("config",),
    ("geometry",),
    ("ops", "diagnostics"),
    ("spaces",),
    ("losses",),
    ("optim", "models"),
    ("data", "runs"),
    ("training",),
    ("evaluation",),
    ("unlearning",),
    ("report",),
    ("testing", "cli"),
    ("__main__", "__init__"),
)
NAMES = {
    "geoopt": "geoopt",
    "PIL": "pillow",
    "yaml": "pyyaml",
    "open_clip": "open_clip_torch",
    "sklearn": "scikit-learn",
}
"""What is imported by another name than it is installed by."""
BROUGHT = {"triton": "torch", "llvmlite": "numba"}
"""What a dependency brings of the one version that it works with."""


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import riemann_unlearn.cli", ["torch", "numpy", "geoopt", "open_clip", "yaml"]),
        ("import riemann_unlearn", ["torch"]),
        ("import riemann_unlearn.losses", ["numba", "open_clip", "timm", "torchvision", "PIL", "yaml"]),
        ("import riemann_unlearn.geometry", ["open_clip", "timm", "torchvision", "PIL", "yaml"]),
        (
            "import riemann_unlearn.unlearning",
            ["riemann_unlearn.diagnostics.stability", "sklearn", "matplotlib"],
        ),
    ],
)
def test_heavy_modules_wait_until_they_are_needed(statement: str, absent: list[str]) -> None:
    code = f"{statement}; import sys; print([m for m in {absent} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_every_public_name_is_there() -> None:
    for name in ru.__all__:
        assert getattr(ru, name) is not None
    assert dir(ru) == sorted(ru.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'forget_everything'"):
        ru.forget_everything  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'guess'"):
        ru.diagnostics.guess  # noqa: B018


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """What a file imports, and whether that is done as soon as the file is."""
    tree = ast.parse(path.read_text("utf-8"))
    later = {
        id(inner)
        for outer in ast.walk(tree)
        if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef)) or _for_types_only(outer)
        for inner in ast.walk(outer)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            module = node.module or ""
            inside = module.partition(".")[0] == "riemann_unlearn"
            names = [f"{module}.{alias.name}" for alias in node.names] if inside else [module]
        else:
            continue
        for name in names:
            yield name, id(node) not in later


def _for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def ours(name: str) -> str:
    """The module of this package that an imported name is in, or is."""
    while name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def test_no_import_goes_upward() -> None:
    height = {name: i for i, row in enumerate(ROOMS) for name in row}
    assert set(height) == {room(module) for module in MODULES}
    for module, path in MODULES.items():
        own = room(module)
        if own == "__init__":  # the door, by which all rooms are reached when they are asked for
            continue
        for name, _ in imports(path):
            if name.startswith("riemann_unlearn."):
                other = room(ours(name))
                allowed = other == own or height[other] < height[own]
                assert allowed, f"{module} imports {name}: {own} is not above {other}"


def test_no_circle_of_imports() -> None:
    """TopologicalSorter raises CycleError where there is one; a package's own __init__ is imported first."""
    graph = {
        module: {
            other
            for name, at_once in imports(path)
            if at_once
            and name.startswith("riemann_unlearn.")
            and (other := ours(name)) != module
            # From within a package, one of its modules does not need the package's own names.
            and not module.startswith(f"{other}.")
        }
        for module, path in MODULES.items()
        if module != "riemann_unlearn"
    }
    assert len(list(TopologicalSorter(graph).static_order())) >= len(graph)


def declared() -> tuple[set[str], set[str]]:
    """The dependencies, and those of the extras, by their normalized names."""
    tomllib = pytest.importorskip("tomllib")  # Python 3.10 has none
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text("utf-8"))["project"]

    def names(requirements: list[str]) -> set[str]:
        return {_normal(re.split(r"[^\w.-]", line)[0]) for line in requirements}

    extras = set().union(*map(names, project["optional-dependencies"].values()))
    return names(project["dependencies"]), extras


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_only_declared_packages_are_imported() -> None:
    """At once only dependencies, in a function also what an extra brings; testing needs the extra "test"."""
    dependencies, extras = declared()
    for module, path in MODULES.items():
        for name, at_once in imports(path):
            top = name.partition(".")[0]
            if top in sys.stdlib_module_names or top == "riemann_unlearn":
                continue
            package = _normal(NAMES.get(top, top))
            optional = package in extras and (not at_once or room(module) == "testing")
            known = optional or BROUGHT.get(package, package) in dependencies
            assert known, f"{module} imports {top}, which pyproject.toml does not declare"


def test_every_module_is_imported_with_the_dependencies_alone() -> None:
    """Whatever else is installed here cannot be imported, but for what dependencies bring with them."""
    dependencies, _ = declared()
    brought, left = set(), list(dependencies)
    while left:
        package = left.pop()
        if package in brought:
            continue
        brought.add(package)
        try:
            needs = importlib.metadata.requires(package) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        left += [_normal(re.split(r"[^\w.-]", need)[0]) for need in needs if "extra ==" not in need]
    blocked = [
        top
        for top, packages in importlib.metadata.packages_distributions().items()
        if not brought & set(map(_normal, packages)) and top not in ("riemann_unlearn", "_distutils_hack")
    ]
    assert {"sklearn", "hypothesis", "pytest"} <= set(blocked)
    wanted = [m for m in MODULES if room(m) not in ("testing", "__main__") and "triton" not in m]
    code = f"""
import importlib, sys
for name in {blocked!r}:
    sys.modules[name] = None
for name in {wanted!r}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_library_asserts_nothing() -> None:
    """An assert is gone under ``python -O``, and says nothing to a user."""
    for module, path in MODULES.items():
        if room(module) != "testing":
            found = [
                node.lineno
                for node in ast.walk(ast.parse(path.read_text("utf-8")))
                if isinstance(node, ast.Assert)
            ]
            assert not found, f"{module} asserts in lines {found}"
