"""Tasks on several streams of samples, whose product is a part of what they hold."""

from collections import Counter
from fractions import Fraction

import pytest
import torch
from accelerate.state import AcceleratorState
from hydra.utils import instantiate
from safetensors.torch import load_file, save_file
from test_training import metrics_of
from torch import nn
from training_runs import (
    LineSamples,
    LineTask,
    assert_equal,
    in_two_processes,
    line_trainer,
    moments,
    weights,
)

from mmface.data.keyed import KeyedDataset
from mmface.data.mixed import MixedSamples, SeparateStreams, StreamOrder, collated, keyed_loader
from mmface.objectives.losses import summed
from mmface.training.task import TrainingTask


class Questions:
    """Samples of another form than `LineSamples`: a sentence, and whether its answer is yes."""

    def __len__(self):
        return 5

    def sample(self, item, generator):
        yes = torch.rand((), generator=generator) < 0.5
        return {"words": f"question {item}", "yes": yes.double(), "item": item}


class AdapterTask(TrainingTask):
    """An adapter inside a frozen network, and beside it a head that only the training needs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 1)).double()
        self.network.requires_grad_(False)
        head = nn.Linear(8, 1).double()
        self.trained = nn.ModuleDict({"adapter": self.network[1].requires_grad_(), "head": head})

    @property
    def product(self):
        return self.trained["adapter"]

    def forward(self, batch):
        line, questions = batch["line"], batch["questions"]
        assert len(line["y"]) == 3 * len(questions["yes"])
        points = torch.tensor([[len(w)] * 4 for w in questions["words"]]).double()
        answers = self.trained["head"](self.network[:2](points))[:, 0]
        errors = [self.network(line["x"])[:, 0] - line["y"], answers - questions["yes"]]
        return summed({"error": torch.cat(errors).square()})

    def subsets(self, batch):
        of_line = torch.arange(len(batch["line"]["y"]) + len(batch["questions"]["yes"]))
        of_line = of_line < len(batch["line"]["y"])
        return {"line": of_line, "questions": ~of_line}

    def export(self, product, folder):
        folder.mkdir()
        save_file(product.state_dict(), folder / "adapter.safetensors")


def two_streams():
    return SeparateStreams({"line": LineSamples(), "questions": Questions()}, SHARES)


SHARES = {"line": 3, "questions": 1}


def train(folder, steps=6, micro=8):
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    recipe = {"global_batch_size": 16, "micro_batch_size": micro}
    task = AdapterTask()
    line_trainer(folder, steps, task=task, samples=two_streams(), recipe=recipe).train()
    return task


@pytest.mark.slow
def test_only_the_adapter_is_averaged_checkpointed_and_exported(tmp_path):
    start, task = AdapterTask(), train(tmp_path)
    saved = weights(tmp_path, 6)
    adapter, head = ({f"{p}.weight", f"{p}.bias"} for p in ("adapter", "head"))
    assert {n.removeprefix("model.") for n in saved if n.startswith("model.")} == adapter | head
    assert {n for n in saved if n.startswith("ema.")} == {"ema.weight", "ema.bias"}
    exported = load_file(tmp_path / "export" / "adapter.safetensors")
    assert exported.keys() == {"weight", "bias"}
    for name, tensor in exported.items():
        assert torch.equal(tensor, saved[f"ema.{name}"])
        assert not torch.equal(tensor, saved[f"model.adapter.{name}"])
    for number in (0, 2):  # the frozen parts of the network
        assert_equal(task.network[number].state_dict(), start.network[number].state_dict())
    trained, untrained = (each.network.state_dict()["1.weight"] for each in (task, start))
    assert not torch.equal(trained, untrained)
    assert {"loss/line", "loss/questions", "loss/error"} <= metrics_of(tmp_path)[-1].keys()


@pytest.mark.slow
def test_a_resumed_run_on_two_streams_ends_bit_equal(tmp_path):
    train(tmp_path / "whole")
    train(tmp_path / "parts", steps=2)
    train(tmp_path / "parts")
    assert_equal(weights(tmp_path / "parts", 6), weights(tmp_path / "whole", 6))
    assert_equal(moments(tmp_path / "parts", 6), moments(tmp_path / "whole", 6))


@pytest.mark.slow
def test_two_processes_on_two_streams_equal_one(tmp_path):
    in_two_processes(lambda: train(tmp_path / "two", micro=4))  # each 2 micro-batches
    train(tmp_path / "one", micro=16)
    assert_equal(weights(tmp_path / "two", 6), weights(tmp_path / "one", 6), rtol=1e-9)


def seen(samples, micro, processes=1, steps=range(6)):
    """Of each step, what all processes were given: pairs of key and draw."""
    batches = [
        list(keyed_loader(samples, 3, 16, micro, steps, rank, processes))
        for rank in range(processes)
    ]
    per_step = 16 // (micro * processes)
    for number in range(len(steps)):
        of_step = [b for own in batches for b in own[number * per_step : (number + 1) * per_step]]
        line = torch.cat([b["line"]["y"] for b in of_step])
        answers = torch.cat([b["questions"]["yes"] for b in of_step])
        yield sorted(line.tolist()), sorted(answers.tolist())


@pytest.mark.parametrize(("micro", "processes"), [(4, 1), (4, 2), (8, 2), (4, 4)])
def test_places_hold_the_same_samples_for_any_number_of_processes(micro, processes):
    whole = list(seen(two_streams(), 16))
    assert list(seen(two_streams(), micro, processes)) == whole
    assert list(seen(two_streams(), micro, processes, range(4, 6))) == whole[4:]
    assert len({tuple(line) for line, _ in whole}) == 6


def test_shares_are_exact_in_every_prefix_and_streams_pass_through_all_items():
    order = StreamOrder([10, 20, 30], [Fraction(3), Fraction(1), Fraction(1, 2)], seed=0)
    counts: Counter[int] = Counter()
    items: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for position in range(900):
        stream, own = order.stream(position)
        assert own == counts[stream]  # how many came before, in closed form
        counts[stream] += 1
        items[stream].append(order.item(position))
        for number, weight in enumerate(order.weights):
            assert abs(counts[number] - (position + 1) * weight / Fraction(9, 2)) < 2
    assert counts == {0: 600, 1: 200, 2: 100}
    firsts = {0: range(10), 1: range(10, 30), 2: range(30, 60)}
    for stream, passes in firsts.items():
        for first in range(0, 90, len(passes)):
            assert sorted(items[stream][first : first + len(passes)]) == list(passes)


@pytest.mark.slow
def test_streams_of_one_form_share_a_batch_and_draw_what_they_would_alone(tmp_path):
    class Shifted(LineSamples):
        def sample(self, item, generator):
            return {n: t + 1000 for n, t in super().sample(item, generator).items()}

    samples = MixedSamples({"near": LineSamples(), "far": Shifted()}, {"near": 2, "far": 1})
    assert len(samples) == 24
    batches = list(keyed_loader(samples, 3, 6, 3, range(5), 0, 1))
    far = sum((batch["y"] > 500).sum() for batch in batches)
    assert (len(batches), far) == (10, 10)
    alone, mixed = KeyedDataset(LineSamples(), 3)[4, 2, 7], KeyedDataset(samples, 3)[4, 2, 7]
    assert torch.equal(alone["x"], mixed["x"])
    assert torch.equal(KeyedDataset(samples, 3)[4, 2, 12 + 7]["x"], alone["x"] + 1000)
    whole, parts = (tmp_path / name for name in ("whole", "parts"))
    line_trainer(whole, 4, task=LineTask(), samples=samples).train()
    line_trainer(parts, 2, task=LineTask(), samples=samples).train()
    line_trainer(parts, 4, task=LineTask(), samples=samples).train()
    assert_equal(weights(parts, 4), weights(whole, 4))


def test_streams_are_composed_in_a_config():
    streams = {name: {"_target_": "training_runs.LineSamples"} for name in ("near", "far")}
    config = {"_target_": "mmface.data.mixed.MixedSamples", "streams": streams}
    samples = instantiate(config | {"weights": {"far": 0.1, "near": 0.2}}, _convert_="all")
    assert list(samples.streams) == ["near", "far"]
    assert samples.weights == [Fraction(1, 5), Fraction(1, 10)]


def test_shares_that_a_batch_cannot_hold_are_refused():
    with pytest.raises(ValueError, match=r"micro-batch of 2 .* shares 3 : 1"):
        keyed_loader(two_streams(), 0, 16, 2, range(2), 0, 1)
    for wrong in ({"line": 1}, {"line": 1, "questions": 0}, {"line": 1, "other": 1}):
        with pytest.raises(ValueError, match="line, questions"):
            MixedSamples(two_streams().streams, wrong)
    plain = [{"x": torch.tensor(1)}, {"x": torch.tensor(2)}]
    assert collated(plain)["x"].tolist() == [1, 2]
