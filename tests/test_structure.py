"""What the layout promises: imports point one way, and nothing is pickled."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {"topicscale": set(), "spark": {"topicscale"}, "ray_actors": {"topicscale"}, "jobs": {"topicscale", "spark", "ray_actors"}}
LATE = {("topicscale", "model.py"): {"jobs"}, ("topicscale", "__init__.py"): {"jobs"}}
"""`TopicModel.fit` starts the job, and `session` keeps its engines: inside functions, not when the modules are imported."""


def imports(path: Path, *, top_level: bool) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("package", list(MAY_IMPORT))
def test_imports_point_one_way(package) -> None:
    for path in (ROOT / package).rglob("*.py"):
        allowed = MAY_IMPORT[package] | {package}
        assert imports(path, top_level=True) & set(MAY_IMPORT) <= allowed, path
        late = LATE.get((package, path.name), set())
        assert imports(path, top_level=False) & set(MAY_IMPORT) <= allowed | late, path


def test_the_core_knows_no_engine() -> None:
    for path in (ROOT / "topicscale").rglob("*.py"):
        assert not imports(path, top_level=False) & {"ray", "pyspark", "delta"}, path


def test_spark_code_also_runs_over_connect() -> None:
    for path in (ROOT / "spark").rglob("*.py"):
        if path.name == "session.py":  # starting and stopping a classic session needs its context
            continue
        text = path.read_text(encoding="utf-8")
        for word in (".rdd", "sparkContext", "_jvm", "udf("):
            assert word not in text, f"{path}: {word}"


def test_rows_reach_spark_as_arrow() -> None:
    """See `spark.tables.from_rows`: rows of Python objects need a Python of this version where the executors run."""
    for path in [*(ROOT / "spark").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")]:
        assert path.read_text(encoding="utf-8").count("createDataFrame") == (path.name == "tables.py"), path


def test_nothing_is_pickled() -> None:
    for package in MAY_IMPORT:
        for path in (ROOT / package).rglob("*.py"):
            assert not imports(path, top_level=False) & {"pickle", "cloudpickle", "dill", "joblib"}, path
            assert "allow_pickle=True" not in path.read_text(encoding="utf-8"), path


def test_importing_the_package_is_light() -> None:
    code = "import sys, topicscale; print([m for m in ('ray', 'pyspark', 'torch', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60)
    assert done.stdout.strip() == "[]"
