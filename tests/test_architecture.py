"""The import table of the architecture and other rules of the house, read off the source."""

import ast
import functools
from collections import defaultdict
from pathlib import Path

import pytest

import omnivae

ROOT = Path(omnivae.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

BASE = {"types", "component", "files", "tokens", "volume"}
#: What each package may import from omnivae besides itself; ``similarity`` is at the level of ``distributions``.
ALLOWED = {
    "types": set(),
    "component": set(),
    "tokens": {"component"},
    "files": set(),
    "volume": set(),
    "distributions": {"types"},
    "similarity": {"types", "distributions"},
    "networks": BASE,
    "likelihoods": BASE | {"distributions", "networks"},
    "priors": BASE | {"distributions", "networks"},
    "posteriors": BASE | {"distributions", "networks"},
    "models": BASE | {"distributions"},
    "losses": BASE | {"distributions", "similarity"},
    "metrics": BASE | {"distributions", "similarity"},
    "data": BASE | {"distributions"},
    # the diagnostics logged while training need the one KL function
    "training": BASE | {"losses", "metrics", "distributions"},
    "diffusion": BASE | {"networks"},
    "recipes": {"component", "tokens", "networks", "posteriors", "priors", "likelihoods", "models"},
    "hub": BASE | {"networks", "posteriors", "priors", "likelihoods", "models", "diffusion"},
    "report": {"types", "volume", "metrics"},
}
#: Rows that name single modules: module -> what it may import beyond its package's row.
EXCEPTIONS = {"models/hierarchical.py": {"posteriors"}, "recipes/video.py": {"hub"}}
#: ``jobs`` holds the public functions behind the commands and may use every package below ``cli``.
FREE = {"cli", "jobs", "__init__", "__main__"}

HEAVY = {
    "lightning",
    "torchmetrics",
    "timm",
    "zuko",
    "diffusers",
    "monai",
    "nibabel",
    "pydicom",
    "SimpleITK",
    "zarr",
    "av",
    "highdicom",
    "matplotlib",
    "sklearn",
    "pyarrow",
    "PIL",
    "tifffile",
    "imagecodecs",
    "datasets",
    "pandas",
    "rich",
    "jsonargparse",
    "transformers",
}
MAY_LOAD = {"training": {"lightning", "jsonargparse", "rich"}, "cli": {"lightning", "jsonargparse", "rich"}}

files = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))


def relative(path):
    return str(path.relative_to(ROOT))


def package_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@functools.cache
def parse(path):
    return ast.parse(path.read_text(), filename=str(path))


def imports(tree, path):
    """Yield (line, full dotted name) of every import, relative ones resolved."""
    package = ["omnivae", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def run_on_import(body):
    """Yield the statements that run when the module is imported: no function bodies, nothing for type checkers only."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if is_type_checking(node):
            yield from run_on_import(node.orelse)
            continue
        yield node
        for field in ("body", "orelse", "finalbody"):
            yield from run_on_import(getattr(node, field, []))
        for handler in getattr(node, "handlers", []):
            yield from run_on_import(handler.body)


def test_every_package_has_a_row():
    assert {package_of(p) for p in FILES} <= ALLOWED.keys() | FREE


@files
def test_imports_follow_the_table(path):
    package = package_of(path)
    if package in FREE or package not in ALLOWED:  # a package without a row fails test_every_package_has_a_row
        return
    allowed = ALLOWED[package] | {package} | EXCEPTIONS.get(relative(path), set())
    wrong = []
    for line, name in imports(parse(path), path):
        parts = name.split(".")
        if parts[0] != "omnivae":
            continue
        if len(parts) == 1 or not ((ROOT / parts[1]).is_dir() or (ROOT / f"{parts[1]}.py").is_file()):
            wrong.append(f"line {line}: imports the top of the package ({name})")
        elif parts[1] not in allowed:
            wrong.append(f"line {line}: {package} may not import {name}")
    assert wrong == []


def test_packages_form_no_cycle():
    edges = defaultdict(set)
    for path in FILES:
        for _, name in imports(parse(path), path):
            parts = name.split(".")
            if parts[0] == "omnivae" and len(parts) > 1 and package_of(path) != "__init__":
                edges[package_of(path)].add(parts[1])
    done, active = set(), []

    def visit(node):
        assert node not in active, " -> ".join([*active, node])
        if node not in done:
            active.append(node)
            for other in sorted(edges[node] - {node}):
                visit(other)
            active.pop()
            done.add(node)

    for node in sorted(edges):
        visit(node)


@files
def test_heavy_libraries_are_imported_inside_functions(path):
    allowed = MAY_LOAD.get(package_of(path), set())
    found = set()
    for node in run_on_import(parse(path).body):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {name.split(".")[0] for _, name in imports(ast.Module([node], []), path)}
    assert sorted(found & HEAVY - allowed) == []


@files
def test_nothing_is_unpickled(path):
    wrong = []
    tree = parse(path)
    safe = {"yaml.SafeLoader", "yaml.CSafeLoader"}
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    safe |= {node.name for node in classes if {ast.unparse(base) for base in node.bases} & safe}
    for line, name in imports(tree, path):
        if name.split(".")[0] in ("pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"):
            wrong.append(f"line {line}: imports {name}")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in ("torch.load", "torch.serialization.load"):
            given = {k.arg: k.value for k in node.keywords}.get("weights_only")
            if not (isinstance(given, ast.Constant) and given.value is True):
                wrong.append(f"line {node.lineno}: torch.load without weights_only=True")
        if called in ("np.load", "numpy.load") and any(
            k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords
        ):
            wrong.append(f"line {node.lineno}: numpy.load with allow_pickle")
        if called in ("eval", "exec", "builtins.eval", "builtins.exec"):
            wrong.append(f"line {node.lineno}: {called}")
        loader = next((ast.unparse(k.value) for k in node.keywords if k.arg == "Loader"), None)
        if called in ("yaml.unsafe_load", "yaml.full_load") or (called == "yaml.load" and loader not in safe):
            wrong.append(f"line {node.lineno}: {called} can build objects; use a SafeLoader")
    assert wrong == []


@files
def test_files_are_at_most_500_lines(path):
    assert len(path.read_text().splitlines()) <= 500


@files
def test_nothing_is_caught_to_continue(path):
    wrong = []
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ExceptHandler):
            kind = ast.unparse(node.type) if node.type else None
            silent = all(isinstance(s, ast.Pass) or ast.unparse(s) == "..." for s in node.body)
            if kind is None or (silent and kind in ("Exception", "BaseException")):
                wrong.append(f"line {node.lineno}: except {kind or ''}: {ast.unparse(node.body[0])}")
    assert wrong == []


@pytest.mark.parametrize("path", [p for p in FILES if package_of(p) == "recipes"], ids=relative)
def test_recipes_are_functions_of_at_most_25_lines(path):
    wrong = []
    for node in parse(path).body:
        # Classes by contract: documents and users write TransVAE(...) and TransVAE.from_pretrained(...). Member is a row of
        # the table of recipes.
        classes = ("TransVAE", "MaisiVAE", "VideoVAE", "BetaVae25D", "BetaVaeMonai", "Member")
        if isinstance(node, ast.ClassDef) and node.name not in classes:
            wrong.append(f"line {node.lineno}: class {node.name}; a recipe is a function")
        if isinstance(node, ast.FunctionDef):
            documented = isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant)
            body = node.body[1:] if documented else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            if lines > 25:
                wrong.append(f"line {node.lineno}: {node.name} has {lines} lines")
    assert wrong == []


@files
def test_every_parameter_is_annotated_and_nothing_is_a_stub(path):
    wrong = []
    for node in ast.walk(parse(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            arguments = [
                *node.args.posonlyargs,
                *node.args.args,
                *node.args.kwonlyargs,
                node.args.vararg,
                node.args.kwarg,
            ]
            wrong += [
                f"line {node.lineno}: {node.name}({a.arg}) has no annotation"
                for a in arguments
                if a is not None and a.annotation is None and a.arg not in ("self", "cls")
            ]
        if isinstance(node, ast.Raise) and node.exc is not None and "NotImplementedError" in ast.unparse(node.exc):
            wrong.append(f"line {node.lineno}: raises NotImplementedError")
    wrong += [
        f"line {i}: TODO"
        for i, line in enumerate(path.read_text().splitlines(), 1)
        if "TODO" in line or "FIXME" in line
    ]
    assert wrong == []


@pytest.mark.parametrize("path", [p for p in FILES if package_of(p) != "cli"], ids=relative)
def test_the_library_does_not_print(path):
    # Doctests live in docstrings, which are no calls.
    calls = [n for n in ast.walk(parse(path)) if isinstance(n, ast.Call) and ast.unparse(n.func) == "print"]
    assert [n.lineno for n in calls] == []
