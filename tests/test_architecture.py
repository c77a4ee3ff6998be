"""A file imports only from files above it, and nothing heavy or foreign is imported."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mmface"
READING_ORDER = [
    "conditions",
    "released",
    "transformer",
    "objectives",
    "encoders",
    "inputs",
    "pipeline",
    "grid",
    "data.rendered",
    "data.examples",
    "sampling",
    "data.store",
    "data.keyed",
    "data.pictures",
    "data.latents",
    "data.samples",
    "training",
    "face_diffusion",
    "component_tasks",
    "evaluation.parser",
    "evaluation.agreement",
    "evaluation.held_out",
]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def place(module: str) -> int | None:
    """Where a module stands; the parts of a package stand where the package stands."""
    parts = module.removeprefix("mmface.").split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in READING_ORDER:
            return READING_ORDER.index(".".join(parts[:length]))
    return None


def files() -> list[Path]:
    return [p for p in sorted(PACKAGE.rglob("*.py")) if p != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_upwards(path):
    own = place(".".join(path.relative_to(PACKAGE).with_suffix("").parts))
    if own is None:
        assert path.name == "__init__.py", f"{path.name} has no place in the reading order"
        return
    for module in imports(path):
        if module.startswith("mmface."):
            other = place(module)
            assert other is None or other <= own, f"{path.name} imports {module} from below"


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_package_knows_nothing_of_hydra_wandb_or_torchvision(path):
    roots = {module.split(".")[0] for module in imports(path)}
    assert not roots & {"hydra", "omegaconf", "wandb", "torchvision", "lpips"}


def test_importing_the_package_is_light():
    code = "import sys, mmface; assert 'torch' not in sys.modules; print(mmface.__version__)"
    subprocess.run([sys.executable, "-c", code], check=True)
