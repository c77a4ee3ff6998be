"""Which faces are for training and which for testing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmface.data.manifest import SPLITS

_FIRST_OF_VAL, _FIRST_OF_TEST = 162_771, 182_638


def face_key(stem: str) -> str:
    """Give a face's name by its file's: "5" and "00005" are the same face, 00005."""
    return f"{int(stem):05d}" if stem.isascii() and stem.isdigit() else stem


@dataclass(frozen=True)
class SplitRule:
    """Gives a face the split of the list that names it, or `default`; None leaves it out.

    `says` is the rule in words.
    """

    lists: Mapping[str, str]
    default: str | None
    says: str

    def of(self, key: str) -> str | None:
        """Give a face's split; None leaves it out."""
        return self.lists.get(key, self.default)


def all_in(split: str) -> SplitRule:
    """Put every face in one split."""
    return SplitRule({}, split, f"all faces are for {split}")


def parse_split(values: Sequence[str]) -> SplitRule | None:
    """Read a rule from the command line; None if there are no values.

    A value is a split, for all that no list names, or `split=file`, a list of names, one a line,
    with or without folder and suffix. With lists alone, all others are for training, unless a list
    of these is given too. ValueError if two lists share a name.
    """
    if not values:
        return None
    lists: dict[str, Path] = {}
    default = None
    for value in values:
        split, _, file = value.partition("=")
        if split not in SPLITS:
            raise ValueError(f"--split {value!r}: give one of {', '.join(SPLITS)}, or split=file.")
        if file:
            lists[split] = Path(file)
        else:
            default = split
    if default is None and "train" not in lists:
        default = "train"
    return listed(lists, default)


def listed(lists: Mapping[str, Path], default: str | None) -> SplitRule:
    """Read text lists of names by split; ValueError if two share a name.

    Faces that no list names get `default`; None leaves them out.
    """
    of: dict[str, str] = {}
    for split, path in lists.items():
        if path.suffix in (".pickle", ".pkl"):
            raise ValueError(f"{path} is a pickle, which may run code and is not read; {_REMEDY}")
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise ValueError(f"{path} is no text; give the names one a line.") from None
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            key = face_key(Path(line.strip()).stem)
            if of.setdefault(key, split) != split:
                raise ValueError(f"{path}:{number}: {key} is in the list of {of[key]} as well.")
    files = ", ".join(f"{split} by {path.name}" for split, path in lists.items())
    rest = f", the rest {default}" if default else ""
    return SplitRule(of, default, f"split: {files}{rest}")


_REMEDY = (
    "save the names as text, one a line, as train/filenames.txt and test/filenames.txt, "
    "or give --split, such as --split test=names.txt."
)


def celeba_split(folder: Path) -> SplitRule:
    """Find the split that a folder of CelebA-HQ brings; ValueError for none or pickles alone.

    Text lists come first, `train.txt` or `train/filenames.txt` and the same for test and val;
    Multi-Modal-CelebA-HQ's have 24,000 and 6,000 names. Then `CelebA-HQ-to-CelebA-mapping.txt`
    gives CelebA's own partition of the originals, which is 24,183 train, 2,993 val and 2,824 test.
    """
    lists: dict[str, Path] = {}
    for split in SPLITS:
        for path in (folder / f"{split}.txt", folder / split / "filenames.txt"):
            if path.is_file():
                lists.setdefault(split, path)
    if lists:
        return listed(lists, None if "train" in lists else "train")
    mapping = folder / "CelebA-HQ-to-CelebA-mapping.txt"
    if mapping.is_file():
        return _partition(mapping)
    pickled = folder / "train" / "filenames.pickle"
    if pickled.is_file():
        raise ValueError(f"{pickled} is a pickle, which may run code and is not read; {_REMEDY}")
    raise ValueError(f"{folder} has no list of its split; {_REMEDY}")


def _partition(mapping: Path) -> SplitRule:
    """Split by the number of the CelebA original."""
    of = {}
    for number, line in enumerate(mapping.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        if number == 1 or not words:
            continue
        if len(words) < 2 or not (words[0].isdigit() and words[1].isdigit()):
            raise ValueError(f"{mapping}:{number}: {line!r} is not `idx orig_idx orig_file`.")
        original = int(words[1])
        late = "test" if original >= _FIRST_OF_TEST else "val"
        of[f"{int(words[0]):05d}"] = "train" if original < _FIRST_OF_VAL else late
    return SplitRule(of, None, f"split: CelebA's partition, by {mapping.name}")
