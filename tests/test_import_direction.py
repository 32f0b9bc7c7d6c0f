"""The packages import in one direction only: jobs -> cluster -> registry -> mos."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "mos": {"mos"},
    "registry": {"registry", "mos"},
    "cluster": {"cluster", "registry", "mos"},
    "jobs": {"jobs", "cluster", "registry", "mos"},
}
FORBIDDEN = {
    "mos": {"ray", "boto3", "botocore", "click", "pyarrow", "duckdb"},
    "registry": {"ray", "click", "diffusers", "transformers"},
    "cluster": {"click"},
    "jobs": {"ray", "boto3", "botocore"},
}


def imported_packages(source: str) -> set[str]:
    """The top-level packages that a module imports anywhere, functions included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def test_every_package_imports_only_what_lies_below_it() -> None:
    seen = 0
    for package, allowed in ALLOWED.items():
        for path in sorted((ROOT / package).rglob("*.py")):
            imports = imported_packages(path.read_text())
            wrong = (imports & set(ALLOWED)) - allowed | imports & FORBIDDEN[package]
            assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"
            seen += 1
    assert seen > 8


def test_the_check_sees_an_import_inside_a_function() -> None:
    assert imported_packages("def f():\n    import ray.data\n    from jobs import cli") == {"ray", "jobs"}
