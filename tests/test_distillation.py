"""Students of few steps: pairs that go on, exact resumes, what each variant learns, the product."""

from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import TEXT_DIM, latents_of
from torch import nn
from training_runs import assert_equal, face_trainer, in_two_processes, moments, weights

from mmface.conditions import condition_kind
from mmface.data.keyed import keyed_generator
from mmface.data.latents import LatentEncoding
from mmface.data.mixed import collated
from mmface.data.samples import LatentSamples, PairSamples
from mmface.data.store import Store
from mmface.evaluation.references import HeldOutPictures
from mmface.model.transformer import MMFaceDiT
from mmface.objectives.objective import RectifiedFlow
from mmface.objectives.times import FewStepsTime
from mmface.sampling.pipeline import MMFacePipeline
from mmface.training.distillation import (
    DistributionMatching,
    Reflow,
    WindowedReflow,
    add_lora,
    merged,
)
from mmface.training.pairs import GuidedPairs


@pytest.fixture(scope="session")
def latents_folder(tiny_pipeline_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("distillation") / "latents"
    LatentEncoding(HeldOutPictures(5, 32), tiny_pipeline_folder / "vae").write(folder)
    return folder


def pairs_job(teacher, latents, **settings):
    settings = {"num_pairs": 7, "shard_size": 2, "num_inference_steps": 3} | settings
    samples = LatentSamples(latents, text_dropout=0.3)
    return GuidedPairs(teacher, samples, guidance_scale=2.0, batch_size=2, **settings)


@pytest.fixture(scope="session")
def pairs_folder(tiny_pipeline_folder, latents_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "store"
    pairs_job(tiny_pipeline_folder, latents_folder).write(folder)
    return folder


def student(**config):
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0, "text_dim": TEXT_DIM}
    return MMFaceDiT(**sizes | config)


def built(variant, teacher, **options):
    options = {"vae": teacher / "vae", "text": teacher, "image_size": 32} | options
    return variant(student(), teacher, **options)


def batch_of(samples, count=3, seed=0):
    return collated([samples.sample(n, keyed_generator(seed, n)) for n in range(count)])


@pytest.mark.slow
def test_a_pair_is_what_a_call_of_the_teacher_makes(
    tiny_pipeline, tiny_pipeline_folder, latents_folder, pairs_folder
):
    store, drawn = Store(pairs_folder), LatentSamples(latents_folder, text_dropout=0.3)
    assert len(store) == 7
    for item in (0, 6):
        row = store.row(item, ("noise", "condition", "image", "modality", "captions"))
        one = drawn.sample(item % 5, keyed_generator(0, item))
        assert row["captions"] == [one["caption"]]
        kind = [k for k in map(condition_kind, ("mask", "sketch")) if k.index == row["modality"]]
        face = HeldOutPictures(5, 32).face(item % 5)
        made = tiny_pipeline(
            one["caption"],
            **{kind[0].name: face.conditions[kind[0].name]},
            latents=torch.from_numpy(row["noise"]).float()[None],
            num_inference_steps=3,
            guidance_scale=2.0,
            output_type="latent",
        )
        end = torch.from_numpy(row["image"]).float()
        # The condition of the store has 16 bits.
        torch.testing.assert_close(latents_of(made)[0], end, rtol=0.02, atol=0.02)


def test_pairs_are_the_same_however_they_are_made(
    tiny_pipeline_folder, latents_folder, pairs_folder, tmp_path
):
    job, parted = pairs_job(tiny_pipeline_folder, latents_folder), tmp_path / "parted"
    for rank in (0, 1):
        job.write(parted, rank, 2)
    (parted / "shard-00001.arrow").unlink()  # as a killed writer leaves it
    kept = (parted / "shard-00002.arrow").stat().st_mtime_ns
    job.write(parted)
    assert (parted / "shard-00002.arrow").stat().st_mtime_ns == kept
    for path in sorted(pairs_folder.glob("shard-*.arrow")):
        assert path.read_bytes() == (parted / path.name).read_bytes()
    with pytest.raises(ValueError, match="num_inference_steps"):
        pairs_job(tiny_pipeline_folder, latents_folder, num_inference_steps=4).write(parted)


def test_few_steps_times_have_their_shares():
    uniform = (torch.arange(10_000) + 0.5) / 10_000
    level = FewStepsTime()(uniform)
    assert (level.diff() >= 0).all()
    for one, share in ((1.0, 0.5), (0.75, 0.1), (0.5, 0.1), (0.25, 0.1)):
        assert float((level == one).float().mean()) == pytest.approx(share, abs=2e-4)
    rest = level[(level * 4).frac() != 0]
    assert float(rest.mean()) == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(ValueError, match="grid"):
        FewStepsTime(first=0.7, grid=0.4)


VARIANTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "reflow": (Reflow, {}),
    "windows": (WindowedReflow, {"solver_steps": 2, "teacher_guidance_scale": 2.0}),
    "matching": (DistributionMatching, {"num_inference_steps": 2, "fake_rate": 3.0}),
    "lora": (Reflow, {"lora": {"rank": 2}}),
}


def samples_for(variant, latents, pairs):
    wanted = VARIANTS[variant][0].samples_class
    return LatentSamples(latents) if wanted is LatentSamples else PairSamples(pairs)


def train(variant, folder, teacher, samples, steps=3, micro=2):
    task, options = VARIANTS[variant]
    made = lambda: built(task, teacher, objective=RectifiedFlow(time=FewStepsTime()), **options)  # noqa: E731
    face_trainer(folder, made, steps, micro, samples=samples).train()


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_student_resumes_bit_equal_and_is_a_pipeline(
    variant, tiny_pipeline_folder, latents_folder, pairs_folder, tmp_path
):
    samples = samples_for(variant, latents_folder, pairs_folder)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(variant, whole, tiny_pipeline_folder, samples)
    train(variant, parts, tiny_pipeline_folder, samples, steps=1)
    train(variant, parts, tiny_pipeline_folder, samples)
    assert_equal(weights(parts, 3), weights(whole, 3))
    assert_equal(moments(parts, 3), moments(whole, 3))
    pipeline = MMFacePipeline.from_pretrained(whole / "export")
    pipeline.set_progress_bar_config(disable=True)
    steps = VARIANTS[variant][1].get("num_inference_steps", 4)
    face = HeldOutPictures(1, 32).face(0)
    output = pipeline("a man", mask=face.conditions["mask"], seed=0)
    assert output.evaluations == steps == pipeline.config.num_inference_steps
    assert pipeline.config.guidance_scale == 1
    assert f"guidance scale 1, {steps} steps" in (whole / "export/README.md").read_text()
    teacher = MMFacePipeline.from_pretrained(tiny_pipeline_folder).transformer.state_dict()
    own = pipeline.transformer.state_dict()
    assert own.keys() == teacher.keys()
    assert any(not torch.equal(own[name], teacher[name]) for name in own)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["windows", "matching"])
def test_two_processes_teach_as_one_does(
    variant, tiny_pipeline_folder, latents_folder, pairs_folder, tmp_path
):
    samples = samples_for(variant, latents_folder, pairs_folder)

    def work():
        train(variant, tmp_path / "two", tiny_pipeline_folder, samples, steps=2, micro=1)

    in_two_processes(work)
    AcceleratorState._reset_state(reset_partial_state=True)
    train(variant, tmp_path / "one", tiny_pipeline_folder, samples, steps=2, micro=4)
    assert_equal(weights(tmp_path / "two", 2), weights(tmp_path / "one", 2), rtol=1e-4, atol=3e-5)


def test_a_windows_start_is_learnt_as_the_teachers_velocity(tiny_pipeline_folder, latents_folder):
    class Start:
        def __call__(self, uniform):
            return torch.ones_like(uniform)

    task = built(
        WindowedReflow,
        tiny_pipeline_folder,
        objective=RectifiedFlow(time=Start()),
        solver_steps=1,
        teacher_guidance_scale=1.0,
    )
    task.initialize()
    batch = batch_of(LatentSamples(latents_folder))
    assert float(task(batch)["loss"].detach().max()) < 1e-9  # the student is the teacher
    task.teacher_guidance_scale = 3.0
    assert float(task(batch)["loss"].detach().min()) > 1e-6
    text = task.text(batch["caption"])
    latents, time = batch["noise"], torch.tensor([0.0, 0.5, 0.75])
    plain = task.predict(task.teacher, latents, 999 * time, text, batch)
    empty = task.predict(task.teacher, latents, 999 * time, task.text([""] * 3), batch)
    guided = task.taught(latents, time, text, batch)
    torch.testing.assert_close(guided, empty + 3 * (plain - empty), rtol=1e-4, atol=1e-5)


def test_each_network_of_distribution_matching_learns_its_own(tiny_pipeline_folder, pairs_folder):
    task = built(DistributionMatching, tiny_pipeline_folder, num_inference_steps=1)
    task.initialize()
    batch = batch_of(PairSamples(pairs_folder))
    losses = task(batch)
    named = {"loss", "loss/matching", "loss/regression", "loss/fake"}
    assert losses.keys() == named
    losses["loss"].mean().backward()
    norms = {
        name: sum(float(p.grad.square().sum()) for p in part.parameters() if p.requires_grad)
        for name, part in task.trained.items()
    }
    assert min(norms.values()) > 0
    assert all(p.grad is None for p in task.teacher.parameters())
    # Where the student makes the pair's picture, the regression is 0; it is the endpoint's error.
    made = batch["noise"] + task.predict(
        task.product, batch["noise"], torch.zeros(3), task.text(batch["caption"]), batch
    )
    error = (made - batch["latents"].float()).square().mean((1, 2, 3))
    torch.testing.assert_close(losses["loss/regression"], 0.5 * error.detach())
    # The fake network equals the unguided teacher at first: only guidance moves the student.
    task.teacher_guidance_scale = 1.0
    assert float(task(batch)["loss/matching"].max()) < 1e-8


def test_a_lora_is_trained_alone_and_added_at_the_export():
    network = student()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    add_lora(network, rank=2)
    trainable = [name for name, p in network.named_parameters() if p.requires_grad]
    assert trainable
    assert all("lora_" in name and name.startswith("blocks.") for name in trainable)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    inputs = (torch.randn(1, 16, 4, 4), torch.randn(1, 16, 4, 4), torch.tensor([5.0]))
    text = (torch.randn(1, 6, TEXT_DIM), torch.randn(1, TEXT_DIM), torch.tensor([0]))
    whole = merged(network)
    assert whole.state_dict().keys() == student().state_dict().keys()
    torch.testing.assert_close(whole(*inputs, *text), network(*inputs, *text), rtol=1e-4, atol=1e-5)


def test_a_student_refuses_what_it_is_not_for(tiny_pipeline_folder, latents_folder, pairs_folder):
    with pytest.raises(ValueError, match=r"Reflow trains on PairSamples, got LatentSamples; make"):
        built(Reflow, tiny_pipeline_folder).check_samples(LatentSamples(latents_folder))
    task = built(WindowedReflow, tiny_pipeline_folder)
    with pytest.raises(ValueError, match=r"WindowedReflow trains on LatentSamples"):
        task.check_samples(PairSamples(pairs_folder))
    with pytest.raises(ValueError, match="no pairs of noise"):
        PairSamples(latents_folder)
    with pytest.raises(ValueError, match="rectified flow"):
        Reflow(student(objective="min_snr_diffusion"), tiny_pipeline_folder)
    with pytest.raises(FileNotFoundError, match="teacher: there is no"):
        Reflow(student(), tiny_pipeline_folder / "vae")
    built(Reflow, tiny_pipeline_folder).check_samples(PairSamples(pairs_folder))
