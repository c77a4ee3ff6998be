"""Several sets of samples in one training, each in proportion to its weight.

Which stream a place belongs to is a function of its position in the run alone, and so are the item
and the draws: neither the number of processes, nor the micro-batch, nor a resume changes them.
"""

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, default_collate

from mmface.data.keyed import (
    GlobalBatchSampler,
    ItemOrder,
    KeyedDataset,
    Samples,
    ShuffledEpochs,
)


class OfStream(NamedTuple):
    """A sample that is only put together with others of its stream."""

    stream: str
    sample: dict[str, Any]


class StreamOrder:
    """Deals the positions of a run out to streams, each with its own shuffled epochs.

    Of any first n positions a stream gets its fraction of n, less than one a stream off.
    """

    def __init__(self, lengths: Sequence[int], weights: Sequence[Fraction], seed: int) -> None:
        """Number the items of all streams through, in the order of the streams."""
        self.weights = weights
        self.first_items = [0, *accumulate(lengths)]
        self.epochs = [ShuffledEpochs(n, seed, 0, 1 + i) for i, n in enumerate(lengths)]

    def stream(self, position: int) -> tuple[int, int]:
        """The stream of a position, and how many earlier positions are that stream's."""
        left = sum(self.weights)
        for number, weight in enumerate(self.weights[:-1]):
            before, after = (int(n * weight / left) for n in (position, position + 1))
            if after > before:
                return number, before
            position, left = position - before, left - weight
        return len(self.weights) - 1, position

    def item(self, position: int) -> int:
        """The item at a position, numbered through all streams."""
        number, own = self.stream(position)
        return self.first_items[number] + self.epochs[number].item(own)


class MixedSamples:
    """Sets of samples of one form, such as two data sets, mixed into the same batches."""

    def __init__(self, streams: Mapping[str, Samples], weights: Mapping[str, float]) -> None:
        """Choose the streams' relative weights, above 0."""
        if not streams or streams.keys() != weights.keys() or min(weights.values()) <= 0:
            raise ValueError(
                f"weights must give each stream ({', '.join(streams)}) a number above 0, got "
                f"{dict(weights)}."
            )
        self.streams = dict(streams)
        self.weights = [Fraction(weights[n]).limit_denominator(10**6) for n in self.streams]
        self._starts = [0, *accumulate(len(each) for each in self.streams.values())]

    def __len__(self) -> int:
        """Number of items in all streams."""
        return self._starts[-1]

    def sample(self, item: int, generator: torch.Generator) -> Any:
        """One training sample of an item, numbered through all streams."""
        name, number = next(
            (name, item - first)
            for name, first, end in zip(self.streams, self._starts, self._starts[1:], strict=False)
            if item < end
        )
        return self.taken(name, self.streams[name].sample(number, generator))

    def taken(self, stream: str, sample: dict[str, Any]) -> Any:
        """What a batch is put together of."""
        return sample

    def sampler(self, order: StreamOrder, *layout: Any) -> GlobalBatchSampler:
        """The micro-batches of one process; `layout` is that of `GlobalBatchSampler`."""
        return GlobalBatchSampler(order, *layout)


class SeparateStreams(MixedSamples):
    """Sets of samples of different forms: a batch holds a batch of each stream by its name.

    Every micro-batch holds the streams in exactly the proportion of their weights, so that every
    process uses every weight in every step.
    """

    def taken(self, stream: str, sample: dict[str, Any]) -> OfStream:
        """The sample with its stream's name."""
        return OfStream(stream, sample)

    def sampler(self, order: StreamOrder, *layout: Any) -> GlobalBatchSampler:
        """Micro-batches that are alike."""
        return AlikeBatchSampler(order, *layout)


class AlikeBatchSampler(GlobalBatchSampler):
    """Gives every micro-batch of a step the same number of samples of each stream."""

    order: StreamOrder

    def __init__(self, order: StreamOrder, *layout: Any) -> None:
        """Lay out the batches as `GlobalBatchSampler` does, whole streams in each micro-batch.

        ValueError if a stream's part of a micro-batch is not a whole number.
        """
        super().__init__(order, *layout)
        shares = [self.micro_batch_size * w / sum(order.weights) for w in order.weights]
        if any(share.denominator > 1 for share in shares):
            raise ValueError(
                f"a micro-batch of {self.micro_batch_size} cannot hold streams in the shares "
                f"{' : '.join(map(str, order.weights))}; change trainer.recipe.micro_batch_size or "
                "the weights, so that each stream gets a whole number of samples."
            )

    def micro_batches(self, step: int) -> Iterator[Sequence[int]]:
        """Deal out each stream's places to the processes, then to the micro-batches."""
        first = step * self.global_batch_size
        places = sorted(
            range(self.global_batch_size), key=lambda place: self.order.stream(first + place)[0]
        )
        own = places[self.process_index :: self.num_processes]
        for micro in range(self.micro_batches_per_step):
            yield own[micro :: self.micro_batches_per_step]


def collated(samples: list[Any]) -> dict[str, Any]:
    """Stack samples into a batch, or those of separate streams into a batch of each by its name."""
    if not isinstance(samples[0], OfStream):
        return default_collate(samples)
    names = sorted({each.stream for each in samples})
    return {
        name: default_collate([each.sample for each in samples if each.stream == name])
        for name in names
    }


def keyed_loader(
    samples: Samples,
    seed: int,
    global_batch_size: int,
    micro_batch_size: int,
    steps: range,
    process_index: int,
    num_processes: int,
    **options: Any,
) -> DataLoader[dict[str, Any]]:
    """Load one process's micro-batches; see `GlobalBatchSampler`."""
    layout = (global_batch_size, micro_batch_size, steps, process_index, num_processes)
    if isinstance(samples, MixedSamples):
        lengths = [len(each) for each in samples.streams.values()]
        sampler = samples.sampler(StreamOrder(lengths, samples.weights, seed), *layout)
    else:
        order: ItemOrder = ShuffledEpochs(len(samples), seed)
        sampler = GlobalBatchSampler(order, *layout)
    dataset = KeyedDataset(samples, seed)
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=collated, **options)
