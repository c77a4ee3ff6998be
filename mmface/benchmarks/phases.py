"""Operators of each phase of the work, for each published script and for this package.

They depend on no machine, so they tell what a noisy time cannot: that the reference does what the
release does. Widths are tiny, which changes no count; depths are the published ones.
"""

import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.optim import AdamW

from mmface.benchmarks.counting import OperatorCount
from mmface.benchmarks.measuring import Report
from mmface.benchmarks.network import GRADIENT_CLIP, OwnTraining, training_batch
from mmface.benchmarks.reading import latent_rows, own_loader, write_latents
from mmface.benchmarks.sampling import Course, GuidedPictures
from mmface.benchmarks.subjects import Bench, Size, byte_tokenizer, make_inputs

OWN = "mmface"
STEPS = 10
LOADED = 8

COUNTED = Size(
    model={"hidden_size": 16, "depth": 28, "num_heads": 2, "text_dim": 64},
    sides=(4,),
    batches=(2,),
    training=((4, 2),),
    sampling_steps=STEPS,
    pictures=1,
    text_layers=23,
    vae_channels=(8, 8, 8, 8),
    growth_depth=1,
)
"""The published depths at a tiny width."""


class Operators(NamedTuple):
    """Operators of one phase; `computing` leaves out those that only rename memory."""

    total: int
    computing: int

    def minus(self, other: "Operators", times: int = 1) -> "Operators":
        """What is left without `other`, done so many times."""
        return Operators(self.total - times * other.total, self.computing - times * other.computing)


def operators(work: Callable[[], Any]) -> Operators:
    """Count the operators of one call."""
    with OperatorCount() as count:
        work()
    total = count.calls.total()
    return Operators(total, total - count.views)


def counted_bench(reference: Any) -> Bench:
    """What the phases are counted on."""
    return Bench(COUNTED, torch.device("cpu"), reference, Report(None, {}))


Phases = dict[str, dict[str, Operators]]
"""Operators by phase, then by script."""


def forward_phases(bench: Bench) -> Phases:
    """One pass of the network for both branches of a guided picture."""
    model = bench.model(torch.float32)
    inputs = make_inputs(model, bench.size.sides[0], 2)
    model(**inputs)  # makes the rotation table
    found = {OWN: operators(lambda: model(**inputs))}
    latents = torch.cat((inputs["noisy_latents"], inputs["condition_latents"]), dim=1)
    names = ("text_tokens", "pooled_text", "modality")
    released = (latents, inputs["timestep"] / 999, *(inputs[name] for name in names))
    for script, made in bench.reference.SAMPLING.items():
        plain = bench.plain(model, made.network.__name__)
        found[script] = operators(partial(plain, *released))
    return {"forward pass": found}


def sampling_phases(bench: Bench) -> Phases:
    """A guided step; what is done before the first one; decoding a picture."""
    model = bench.model(torch.float32)
    pictures = GuidedPictures(bench, bench.pipeline(model), 1)

    def own(steps: int, output_type: str = "latent") -> Operators:
        return operators(partial(pictures.own, Course("euler", steps), output_type))

    own(STEPS)  # makes the rotation table
    latents = own(STEPS)
    step = own(STEPS + 1).minus(latents)
    phases: Phases = {
        "guided step": {OWN: step},
        "before the first step": {OWN: latents.minus(step, STEPS)},
        "decoding a picture": {OWN: own(STEPS, "pt").minus(latents)},
    }
    for script, made in bench.reference.SAMPLING.items():
        plain = bench.plain(model, made.network.__name__)
        command = bench.sampling_script(script, plain, pictures.pipeline)
        released = [
            operators(partial(pictures.plain, command, steps)) for steps in (STEPS, STEPS + 1)
        ]
        step = released[1].minus(released[0])
        one = pictures.plain(command, 1)
        phases["guided step"][script] = step
        phases["before the first step"][script] = released[0].minus(step, STEPS)
        phases["decoding a picture"][script] = operators(partial(command.decode, one))
    return phases


def training_phases(bench: Bench) -> Phases:
    """An optimizer step, of which the release recomputes every block; ours keeps or recomputes."""
    (side, batch) = bench.size.training[0]
    optimizer = partial(AdamW, lr=1e-4, fused=True)

    def second(step: Callable[[Any], float], samples: Any) -> Operators:
        step(samples)  # makes the optimizer's state
        return operators(partial(step, samples))

    found = {}
    for name, recomputes in ((OWN, False), (f"{OWN}, checkpointed", True)):
        model = bench.model(torch.float32)
        if recomputes:
            model.enable_gradient_checkpointing()
        samples = training_batch(model, side, batch)
        found[name] = second(OwnTraining(model, optimizer).step, samples)
    drawn = {name: x for name, x in samples.items() if name not in ("noise", "uniform")}
    model = bench.model(torch.float32)
    for script in bench.reference.TRAINING:
        training = bench.training_script(script, model, optimizer, GRADIENT_CLIP)
        training.model.c_embedder.dropout = 0.05
        found[script] = second(training.step, drawn)
    return {"training step": found}


def loading_phases(bench: Bench) -> Phases:
    """Loading samples in a batch, with no dropout, which would be drawn by chance."""

    def each(loader: Iterable[Any]) -> Operators:
        whole = operators(lambda: list(loader))
        return Operators(round(whole.total / LOADED), round(whole.computing / LOADED))

    with tempfile.TemporaryDirectory() as scratch:
        folder, rows = Path(scratch), latent_rows(LOADED, bench.size.sides[0])
        write_latents(folder / "store", rows)
        bench.reference.write_files(folder / "files", rows)
        dataset = bench.reference.PlainLatents(folder / "files", byte_tokenizer(), dropout=0.0)
        released = each(bench.reference.plain_loader(dataset, LOADED))
        return {
            "loading a sample": {
                OWN: each(own_loader(folder / "store", LOADED, LOADED, dropout=0.0)),
                **dict.fromkeys(bench.reference.TRAINING, released),
            }
        }


@torch.no_grad()
def _without_gradients(count: Callable[[Bench], Phases], bench: Bench) -> Phases:
    return count(bench)


def count_phases(reference: Any) -> Phases:
    """Count every phase."""
    bench = counted_bench(reference)
    return {
        **_without_gradients(forward_phases, bench),
        **_without_gradients(sampling_phases, bench),
        **training_phases(bench),
        **loading_phases(bench),
    }


def measure_phases(bench: Bench) -> None:
    """The operators of every phase, a measurement a script."""
    for phase, found in count_phases(bench.reference).items():
        for script, one in found.items():
            case = f"{phase}, {script}"
            values = {"operators": one.total, "computing_operators": one.computing}
            bench.report.measure("phases", case, partial(dict, values))
