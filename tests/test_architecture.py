"""A room imports only rooms below it, and nothing heavy or foreign is imported."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mmface"
ROOMS = {
    "core": set(),
    "conditions": set(),
    "objectives": {"core"},
    "encoders": {"conditions", "core"},
    "model": {"core", "objectives"},
    "rendered": {"conditions"},
    "data": {"conditions", "core", "encoders", "rendered"},
    "sampling": {"conditions", "core", "encoders", "model", "objectives"},
    "annotation": {"conditions", "core", "data", "encoders"},
    "metrics": {"conditions", "core", "data", "encoders"},
    "generation": {
        *("annotation", "conditions", "core", "encoders", "model", "rendered", "sampling"),
    },
    "training": {
        *("conditions", "core", "data", "encoders", "generation", "model", "objectives"),
        *("rendered", "sampling"),
    },
    "doctor": {"annotation", "conditions", "core", "data", "generation"},
    "evaluation": {
        *("conditions", "core", "data", "encoders", "generation", "metrics", "rendered"),
        "sampling",
    },
    "app": {
        *("annotation", "conditions", "core", "encoders", "generation", "objectives", "rendered"),
        "sampling",
    },
    "comfyui": {"conditions", "generation", "sampling"},
    "planning": {
        *("conditions", "core", "data", "encoders", "generation", "model", "sampling", "training"),
    },
    "benchmarks": {
        *("conditions", "core", "data", "encoders", "model", "objectives", "sampling", "training"),
    },
}
"""What each room may import, the lowest first. A new file needs no line here."""


@cache
def imports(path: Path, inside_functions: bool = True) -> set[str]:
    found = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if inside_functions else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files() -> list[Path]:
    return [p for p in sorted(PACKAGE.rglob("*.py")) if p.parent != PACKAGE]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0]


def arrows() -> dict[str, set[str]]:
    """The rooms that each room imports."""
    found: dict[str, set[str]] = {room_of(path): set() for path in files()}
    for path in files():
        modules = [module.split(".") for module in imports(path) if module.startswith("mmface.")]
        found[room_of(path)] |= {parts[1] for parts in modules if parts[1] in ROOMS}
    return {room: others - {room} for room, others in found.items()}


def test_rooms_import_only_what_they_may():
    found = arrows()
    assert found.keys() == ROOMS.keys()
    for room, others in found.items():
        assert others <= ROOMS[room], f"{room} imports {others - ROOMS[room]}"


def test_no_arrow_is_allowed_that_nothing_needs():
    unused = {room: ROOMS[room] - others for room, others in arrows().items()}
    assert not any(unused.values()), unused


def test_rooms_lie_on_few_floors_and_import_only_downwards():
    floor: dict[str, int] = {}
    for room, others in ROOMS.items():
        assert others <= floor.keys(), f"{room} imports {others - floor.keys()} from above"
        floor[room] = 1 + max((floor[other] for other in others), default=0)
    assert max(floor.values()) <= 8  # scripts are the ninth


def test_the_house_has_few_rooms_and_a_small_hall():
    assert len(ROOMS) <= 20
    assert len(list(PACKAGE.glob("*.py"))) <= 4


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_lives_there(room):
    said = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text()))
    assert len(said or "") > 100


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_package_knows_nothing_of_hydra_wandb_or_torchvision(path):
    roots = {module.split(".")[0] for module in imports(path)}
    assert not roots & {"hydra", "omegaconf", "wandb", "torchvision"}
    top = {module.split(".")[0] for module in imports(path, inside_functions=False)}
    assert not top & {"lpips", "torchmetrics", "scipy", "matplotlib"}


def test_importing_the_package_is_light():
    code = "import sys, mmface.conditions; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def imported_by(*command: str) -> set[str]:
    """Run a script of ours in a process of its own, and give all modules that it imported."""
    script, *arguments = command
    code = (
        "import atexit, runpy, sys\n"
        "there = lambda: [name for name, module in sys.modules.items() if module]\n"
        "atexit.register(lambda: print('IMPORTED', *there()))\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(PACKAGE.parent / "scripts" / script), *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(run.stdout.rpartition("IMPORTED ")[2].split())


SCRIPTS = sorted(path.name for path in (PACKAGE.parent / "scripts").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_does_not_wait_for_torch(script):
    assert not {"torch", "diffusers", "transformers", "accelerate"} & imported_by(script, "--help")


@pytest.mark.slow
def test_a_picture_is_sampled_without_libraries_that_it_does_not_need(tmp_path):
    mask = PACKAGE / "assets" / "examples" / "mask_0.png"
    arguments = ["--prompt", "x", "--mask", str(mask), "--steps", "2"]
    imported = imported_by("sample.py", *arguments, "--out", str(tmp_path / "face.png"))
    assert (tmp_path / "face.png").exists()
    unneeded = {"bitsandbytes", "peft", "scipy", "sklearn", "datasets", "gradio"}
    assert not (unneeded | {"torchvision", "lpips", "matplotlib", "pandas"}) & imported


MAX_FILES_ENTERED = 15


@pytest.mark.slow
def test_the_way_from_a_mask_to_its_picture_enters_few_files(tmp_path):
    """Files in which a function runs once everything is imported; one person reads them all."""
    code = """
import importlib, pkgutil, runpy, sys
import mmface
package, script, *sys.argv[1:] = sys.argv[1:]
sys.argv[0] = script
for module in pkgutil.walk_packages(mmface.__path__, "mmface."):
    try:
        importlib.import_module(module.name)
    except ImportError:  # of an extra that is not installed
        pass
found = set()
def note(frame, event, _):
    code = frame.f_code
    if event == "call" and code.co_flags & 1 and code.co_filename.startswith(package):
        found.add(code.co_filename.removeprefix(package))
sys.setprofile(note)
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
finally:
    sys.setprofile(None)
print("ENTERED", *sorted(found))
"""
    mask = PACKAGE / "assets" / "examples" / "mask_0.png"
    asked = ["--prompt", "x", "--mask", str(mask), "--steps", "2", "--out", str(tmp_path / "x.png")]
    places = [str(PACKAGE), str(PACKAGE.parent / "scripts" / "sample.py")]
    run = subprocess.run(
        [sys.executable, "-c", code, *places, *asked], capture_output=True, text=True, check=True
    )
    entered = run.stdout.rpartition("ENTERED ")[2].split()
    assert (tmp_path / "x.png").exists()
    assert 5 < len(entered) <= MAX_FILES_ENTERED, entered
