"""From a folder or manifest of pictures to the same with annotations: what `annotate.py` does."""

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from PIL import Image
from transformers import CLIPTokenizer

from mmface.annotation.caption_engines import (
    CAPTIONER,
    Captioner,
    CaptionerSettings,
    TransformersCaptioner,
    VllmCaptioner,
)
from mmface.annotation.captions import PictureCaptioner
from mmface.annotation.outputs import (
    Item,
    Outcome,
    PictureAnnotator,
    picture_output,
    read_captions,
    write_captions,
    write_pictures,
)
from mmface.annotation.rewriting import REWRITER, Rewriter, RewriterSettings
from mmface.annotation.sketches import POLARITY, PencilSketch, U2NetPortrait
from mmface.conditions import MASK, SKETCH, ConditionKind
from mmface.core.files import PICTURE_SUFFIXES, locked
from mmface.core.processes import joined_processes
from mmface.core.sources import opened
from mmface.data.manifest import Manifest, Record
from mmface.encoders.face_parser import PARSER, FaceParser

MANIFEST_FILE = "manifest.jsonl"
MAX_LISTED = 20
"""Unreadable pictures that are named at the end; the others are counted."""

ENGINES: dict[str, Callable[[CaptionerSettings], Captioner]] = {
    "transformers": TransformersCaptioner.from_pretrained,
    "vllm": VllmCaptioner,
}
TOKENIZER = "openai/clip-vit-large-patch14"
"""Has the pieces and merges of the text encoder of SD 2.1, which the paper's model reads."""


def read_source(source: str | Path) -> Manifest:
    """Read a manifest, or list a folder's pictures, sub-folders included.

    A folder's picture has its path without the suffix as id, and is in the training split.
    ValueError if two pictures would have one id.
    """
    source = Path(source)
    manifest = _folder_manifest(source) if source.is_dir() else Manifest.read(source)
    if not manifest.records:
        raise ValueError(f"{source} has no pictures ({', '.join(PICTURE_SUFFIXES)})")
    for record in manifest.records:
        path = PurePosixPath(record.id)
        if path.is_absolute() or ".." in path.parts or "\\" in record.id or "\0" in record.id:
            raise ValueError(f"{source}: the id {record.id!r} cannot be a file's name")
    return manifest


def _folder_manifest(folder: Path) -> Manifest:
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES)
    ids = [path.relative_to(folder).with_suffix("").as_posix() for path in paths]
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise ValueError(f"{folder} has two pictures named {twice[0]!r} with different suffixes")
    records = [
        Record(name, path.relative_to(folder).as_posix(), (), "train", *_size(path))
        for name, path in zip(ids, paths, strict=True)
    ]
    return Manifest(folder / MANIFEST_FILE, records, made_by={"folder": folder.name})


def _size(path: Path) -> tuple[int, int]:
    """Upright width and height from a file's head; 1 x 1 if that cannot be read."""
    try:
        with Image.open(path) as picture:
            lying = picture.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
            return picture.size[::-1] if lying else picture.size
    except Exception:  # decoders fail in many ways; the reading of the picture itself reports it
        return 1, 1


_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Work:
    """Which pictures, by which process, to where.

    `shard` is `i/n`, every n-th picture from the i-th on; None takes the process's number among
    those that torchrun or accelerate started. Device None takes the process's own GPU if there is
    one.
    """

    source: Path
    out: Path
    shard: str | None = None
    batch_size: int = 8
    device: str | None = None

    @property
    def torch_device(self) -> str:
        """The device to compute on."""
        return self.device or str(joined_processes().device)

    @property
    def share(self) -> tuple[int, int]:
        """This process's number and how many there are; ValueError unless 0 <= i < n."""
        if self.shard is None:
            state = joined_processes()
            return state.process_index, state.num_processes
        index, _, count = self.shard.partition("/")
        if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise ValueError(f"--shard {self.shard} is not i/n with 0 <= i < n, such as 0/4")
        return int(index), int(count)

    def conditions(
        self, annotator: PictureAnnotator, kind: ConditionKind, reading: str | None = None
    ) -> int:
        """Make a condition of each picture; exit status 1 if pictures could not be read.

        `reading` is how the manifest records the values, by default as the kind does.
        """
        said = {kind.reading.field: reading or kind.reading.default} if kind.reading else {}
        manifest = read_source(self.source)
        outcome = write_pictures(self._mine(manifest), annotator, self.out, self.batch_size)
        moved = manifest.at(self.out / MANIFEST_FILE)

        def scan() -> list[Record]:
            return [
                record.having(**{kind.name: picture_output(Path(), record.id).as_posix()}, **said)
                for record in moved.records
                if picture_output(self.out, record.id).exists()
            ]

        return self._finish(moved, scan, outcome)

    def captions(self, captioner: PictureCaptioner) -> int:
        """Caption the pictures; exit status 1 if some could not be read."""
        manifest = read_source(self.source)
        # A picture is asked all prompts at once; its answers are cut into batches again.
        num_pictures = -(-self.batch_size // len(captioner.prompts))
        mine = self._mine(manifest)
        outcome = write_captions(mine, captioner, self.out, self.share, num_pictures)
        moved = manifest.at(self.out / MANIFEST_FILE)

        def scan() -> list[Record]:
            found = read_captions(self.out)
            return [
                replace(record, captions=tuple(found[record.id]))
                for record in moved.records
                if record.id in found
            ]

        return self._finish(moved, scan, outcome)

    def check_out(self) -> None:
        """Raise ValueError if the output would lie among the source's pictures."""
        if self.source.is_dir() and self.out.resolve().is_relative_to(self.source.resolve()):
            raise ValueError(
                f"{self.out} lies in {self.source}, whose pictures are all annotated: what is made "
                "would be taken for pictures; give another --out"
            )

    def _mine(self, manifest: Manifest) -> list[Item]:
        index, count = self.share
        mine = manifest.records[index::count]
        return [Item(record.id, manifest.path.parent / record.image) for record in mine]

    def _finish(self, moved: Manifest, scan: Callable[[], list[Record]], outcome: Outcome) -> int:
        """Write the manifest of all that every process has done so far, and say what was done."""
        done = None
        # Another process may end between the look and the writing, so look again until it is quiet.
        while (found := scan()) != done:
            done = found
            replace(moved, records=done).write(moved.path)
        _say(f"{outcome.num_made} made, {outcome.num_skipped} were there already")
        for name, reason in list(outcome.unreadable.items())[:MAX_LISTED]:
            _say(f"not read: {name}: {reason}")
        if len(outcome.unreadable) > MAX_LISTED:
            _say(f"not read: {len(outcome.unreadable) - MAX_LISTED} more")
        left = len(moved.records) - len(found) - len(outcome.unreadable)
        if left:
            _say(f"{left} of {len(moved.records)} pictures are left to other shards")
        print(moved.path)
        return 1 if outcome.unreadable else 0


@dataclass(frozen=True)
class Models:
    """What annotates. A hub id may carry its revision, `id@commit`; a weights file its SHA-256.

    `model` is the parser, U2-Net's weights or the captioner, by default the kind's own; captions
    are not rewritten if `rewriter` is None; `tokenizer`, the text encoder's, counts the cap of
    captions.
    """

    model: str | None = None
    rewriter: str | None = REWRITER
    tokenizer: str = TOKENIZER
    engine: str = "transformers"
    seed: int = 0

    def parser(self, device: str) -> FaceParser:
        """Load the parser; without a name it is the paper's kind, a SegFormer for faces."""
        return FaceParser.from_pretrained(*_named(self.model or PARSER), device)

    def sketcher(self, device: str) -> PencilSketch | U2NetPortrait:
        """Load U2-Net from its weights; without them it is the pencil, which needs none."""
        if self.model is None:
            return PencilSketch(device=device)
        return U2NetPortrait.from_file(*_named(self.model), device)

    def captioner(self, device: str, batch_size: int) -> PictureCaptioner:
        """Load all that captions are made with; `batch_size` answers at a time."""
        if self.engine not in ENGINES:
            raise ValueError(f"there is no engine {self.engine!r}; known are {', '.join(ENGINES)}")
        settings = CaptionerSettings(*_named(self.model or CAPTIONER), device=device)
        name, revision = _named(self.tokenizer)
        # The small ones first: what is missing is said before the captioner is loaded.
        with opened("tokenizer", name) as source:
            tokenizer = CLIPTokenizer.from_pretrained(source, revision=revision)
        rewriter = self._rewriter(device)
        return PictureCaptioner(
            ENGINES[self.engine](settings),
            tokenizer,
            rewriter,
            seed=self.seed,
            batch_size=batch_size,
        )

    def _rewriter(self, device: str) -> Rewriter | None:
        if self.rewriter is None:
            return None
        return Rewriter.from_pretrained(RewriterSettings(*_named(self.rewriter), device=device))


def _named(model: str) -> tuple[str, str | None]:
    """Split `id@revision`; a path that exists is taken whole."""
    name, _, revision = model.rpartition("@")
    return (name, revision) if name and not Path(model).exists() else (model, None)


def annotate(kind: str, work: Work, models: Models) -> int:
    """Make `masks`, `sketches` or `captions`; exit status 1 if pictures could not be read.

    BlockingIOError if another run makes the same shard in the folder.
    """
    if kind not in ("masks", "sketches", "captions"):
        raise ValueError(f"there is no annotation {kind!r}; known are masks, sketches, captions")
    device = work.torch_device
    work.check_out()
    with locked(work.out, "shard-{}-of-{}".format(*work.share)):  # before a model is loaded
        if kind == "masks":
            return work.conditions(models.parser(device), MASK, "celebamask_hq")
        if kind == "sketches":
            return work.conditions(models.sketcher(device), SKETCH, POLARITY)
        return work.captions(models.captioner(device, work.batch_size))


def _say(note: str) -> None:
    print(f"note: {note}", file=sys.stderr)
