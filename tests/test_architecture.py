"""A file imports only from files above it, and nothing heavy or foreign is imported."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mmface"
READING_ORDER = [
    "core.mistakes",
    "core.files",
    "core.digests",
    "core.light_imports",
    "core.environment",
    "core.sources",
    "core.processes",
    "conditions",
    "model.released",
    "model.linear",
    "model.transformer",
    "model.packed_modulations",
    "model.ablations",
    "model.recomputation",
    "transformer",
    "ablations",
    "objectives.solvers",
    "objectives.times",
    "objectives.losses",
    "objectives.objective",
    "encoders",
    "released_folder",
    "inputs",
    "blending",
    "guidance",
    "pipeline_output",
    "step_cache",
    "denoiser",
    "pipeline",
    "acceleration",
    "grid",
    "data.rendered",
    "data.perceptual_hash",
    "data.examples",
    "sampling_settings",
    "example_rows",
    "data.store",
    "data.keyed",
    "data.mixed",
    "data.manifest",
    "data.importers",
    "data.pictures",
    "data.encoding_cost",
    "data.latents",
    "data.samples",
    "training_task",
    "optimization",
    "metering",
    "planner",
    "live_memory",
    "checkpoints",
    "run_state",
    "recipe",
    "loss_curve",
    "training",
    "model_card",
    "model.initial_weights",
    "face_diffusion",
    "component_tasks",
    "evaluation.held_out",
    "annotation",
    "data.doctor",
    "adherence",
    "model.lora",
    "sampling_recipe",
    "model_loading",
    "sampling_conditions",
    "sampling_rows",
    "sampling_plan",
    "sampling_jobs",
    "sampling",
    "evaluation.parted_work",
    "metrics",
    "evaluation.references",
    "evaluation.methods",
    "evaluation.controls",
    "evaluation.generation",
    "evaluation.tables",
    "evaluation.scoring",
    "evaluation.reports",
    "evaluation.figures",
    "evaluation.table_evaluation",
    "app",
    "benchmarks.measuring",
    "benchmarks.subjects",
    "benchmarks.network",
    "benchmarks.attention",
    "benchmarks.counting",
    "benchmarks.sampling",
    "benchmarks.reading",
    "benchmarks.suite",
]


def imports(path: Path, inside_functions: bool = True) -> set[str]:
    found = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if inside_functions else tree.body:
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
    assert not roots & {"hydra", "omegaconf", "wandb", "torchvision"}
    top = {module.split(".")[0] for module in imports(path, inside_functions=False)}
    assert not top & {"lpips", "torchmetrics", "scipy", "matplotlib"}


def test_importing_the_package_is_light():
    code = "import sys, mmface; assert 'torch' not in sys.modules; print(mmface.__version__)"
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
