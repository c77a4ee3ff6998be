"""Published numbers hold together, and tables say what is measured, skipped and missing."""

import csv
import io
import json
import re
from decimal import ROUND_HALF_UP, Decimal

import pytest

from mmface.evaluation.reports import (
    FORMATS,
    as_csv,
    as_json,
    as_latex,
    as_markdown,
    as_plain,
    write_table,
)
from mmface.evaluation.tables import (
    TABLE_1,
    TABLE_2,
    TABLE_3,
    TABLES,
    Cell,
    Measured,
    Table,
    TableRow,
    installed_versions,
)
from mmface.metrics.metric import Skipped, columns

VERSIONS = {"mmface": "1.0", "torch": "2.0"}
SKIPPED = Skipped("no file weights_50%.pth", "download it")


def gain(better, worse):
    return round(abs(float(better) - float(worse)) / float(worse) * 100, 1)


@pytest.mark.parametrize(
    "row", [*TABLE_1.rows, *TABLE_2.rows], ids=lambda row: f"{row.method} {row.values['fid']}"
)
def test_published_distance_is_one_minus_the_score(row):
    distance = 1 - row.values["clip"] / 100
    assert row.values["clip_distance"] == distance.quantize(Decimal("0.01"), ROUND_HALF_UP)


def test_published_tables_are_whole():
    assert [len(table.rows) for table in TABLES] == [8, 7, 5]
    for table in TABLES:
        assert set(table.metrics) <= set(columns())
        for row in table.rows:
            assert set(row.values) == set(table.metrics)
    with pytest.raises(ValueError, match="no method 'GAN'"):
        TABLE_1.row("GAN")


TYPED = {
    "TediGAN": (
        "62.55 0.43 0.48 79.77 39.02 25.26 0.75 0.4061",
        "121.24 0.55 0.30 21.62 0.78 0.10",
    ),
    "ControlNet": (
        "49.39 0.57 0.41 82.86 43.95 25.39 0.75 0.3103",
        "67.13 0.54 0.56 26.17 0.74 0.44",
    ),
    "UaC": ("48.88 0.46 0.48 78.27 38.82 23.75 0.76 0.3516", "118.52 0.61 0.41 22.92 0.77 0.27"),
    "CD": ("49.00 0.56 0.46 85.69 38.85 25.07 0.75 0.3029", None),
    "DDGI": ("50.88 0.45 0.49 86.00 36.02 24.29 0.76 0.3851", "56.57 0.43 0.51 23.95 0.76 0.43"),
    "MM2Latent": (
        "49.78 0.59 0.45 84.57 38.19 26.78 0.73 0.3619",
        "40.91 0.58 0.46 27.04 0.73 0.39",
    ),
    "MMFace-DiT (D)": (
        "27.95 0.34 0.51 93.95 49.16 31.69 0.68 0.6006",
        "27.67 0.24 0.72 31.56 0.68 0.69",
    ),
    "MMFace-DiT (F)": (
        "16.63 0.34 0.53 93.74 50.12 31.34 0.69 0.6372",
        "9.14 0.20 0.70 31.30 0.69 0.72",
    ),
}
"""Tables 1 and 2 row by row, typed a second time: FID LPIPS SSIM [ACC mIoU] CLIP Dist LLM."""
TYPED_ABLATION = {
    "fid": "44.52 40.49 35.61 33.77 27.95",
    "lpips": "0.486 0.366 0.367 0.326 0.340",
    "clip": "24.53 24.31 29.69 31.42 31.69",
    "ssim": "0.44 0.46 0.49 0.50 0.51",
    "accuracy": "86.65 87.91 90.79 92.29 93.95",
    "mean_iou": "44.86 46.34 48.91 50.05 49.16",
}
"""Table 3 column by column, Model-1 to Model-5."""


def test_published_numbers_are_those_typed_a_second_time():
    shared = ["clip", "clip_distance", "llm"]
    columns = (
        ["fid", "lpips", "ssim", "accuracy", "mean_iou", *shared],
        ["fid", "lpips", "ssim", *shared],
    )
    for place, (table, names) in enumerate(zip((TABLE_1, TABLE_2), columns, strict=True)):
        typed = {method: row[place] or "" for method, row in TYPED.items() if row[place]}
        assert [row.method for row in table.rows] == list(typed)
        for method, numbers in typed.items():
            printed = {name: str(value) for name, value in table.row(method).values.items()}
            assert printed == dict(zip(names, numbers.split(), strict=True))
    assert [row.method.split(":")[0] for row in TABLE_3.rows] == [f"Model-{i}" for i in range(1, 6)]
    assert set(TABLE_3.metrics) == set(TYPED_ABLATION)
    for metric, numbers in TYPED_ABLATION.items():
        assert [str(row.values[metric]) for row in TABLE_3.rows] == numbers.split()


def test_published_text_follows_from_the_tables():
    diffusion, flow = TABLE_1.row("MMFace-DiT (D)").values, TABLE_1.row("MMFace-DiT (F)").values
    uac, control = TABLE_1.row("UaC").values, TABLE_1.row("ControlNet").values
    ddgi = TABLE_1.row("DDGI").values
    assert gain(diffusion["fid"], uac["fid"]) == 42.8
    assert gain(diffusion["clip"], control["clip"]) == 24.8
    assert gain(diffusion["lpips"], ddgi["lpips"]) == 24.4
    assert gain(flow["fid"], diffusion["fid"]) == 40.5
    sketch, sketch_flow = (TABLE_2.row(f"MMFace-DiT ({m})").values for m in "DF")
    assert gain(sketch["fid"], TABLE_2.row("MM2Latent").values["fid"]) == 32.4
    assert gain(sketch["lpips"], TABLE_2.row("DDGI").values["lpips"]) == 44.2
    assert gain(sketch["llm"], TABLE_2.row("ControlNet").values["llm"]) == 56.8
    assert gain(sketch_flow["fid"], sketch["fid"]) == 67.0


def test_ablation_ends_at_the_diffusion_model_of_the_main_table():
    last, main = TABLE_3.rows[-1].values, TABLE_1.row("MMFace-DiT (D)").values
    for metric in set(TABLE_3.metrics):
        assert last[metric].quantize(main[metric]) == main[metric]


@pytest.fixture
def table():
    rows = [
        TableRow(
            "UaC & co_1",
            {
                "fid": Cell(Decimal("48.88"), Measured(47.123, 6000, "p/1", spread=0.21, seeds=3)),
                "ssim": Cell(Decimal("0.50"), None),
            },
        ),
        TableRow(
            "ours",
            {
                "fid": Cell(None, Measured(16.6, 6000, "p/1", spread=0.1, seeds=3)),
                "ssim": Cell(Decimal("0.53"), SKIPPED),
                "clip": Cell(None, Measured(31.0, 6000, "c/1", low=30.5, high=31.5)),
            },
        ),
    ]
    return Table("100 % of #1", ["fid", "ssim", "clip"], rows, versions=VERSIONS)


def test_plain(table):
    title, rule, *lines = as_plain(table).splitlines()
    assert title == "100 % of #1"
    assert set(rule) == {"-"}
    assert [" ".join(line.split()) for line in lines if set(line) != {"-"}] == [
        "method FID ↓ (published / measured) SSIM ↑ (published / measured) CLIP ↑",
        "UaC & co_1 48.88 / 47.12 ± 0.21 0.50 / — —",
        "ours — / 16.60 ± 0.10* 0.53 / skipped [1] 31.00 [30.50, 31.50]",
        "FID: p/1, N = 6000, 3 seeds",
        "CLIP: c/1, N = 6000",
        "[1] skipped: no file weights_50%.pth; download it",
        "Versions: mmface 1.0, torch 2.0",
    ]
    assert {len(line) for line in lines[:5]} == {len(rule)}  # the columns stand under each other


def test_markdown(table):
    assert as_markdown(table).splitlines()[:5] == [
        "**100 % of #1**",
        "",
        "| method | FID ↓ (published / measured) | SSIM ↑ (published / measured) | CLIP ↑ |",
        "|---|---|---|---|",
        r"| UaC & co\_1 | 48.88 / 47.12 ± 0.21 | 0.50 / — | — |",
    ]
    assert "| — / **16.60 ± 0.10** | 0.53 / skipped [1] |" in as_markdown(table)


def test_latex(table):
    text = as_latex(table)
    assert r"\caption{100 \% of \#1}" in text
    assert r"UaC \& co\_1 & 48.88 / 47.12 $\pm$ 0.21 & 0.50 / --- & --- \\" in text
    assert r"--- / \textbf{16.60 $\pm$ 0.10} & 0.53 / skipped [1]" in text
    assert r"{}[1] skipped: no file weights\_50\%.pth; download it" in text
    assert r"\begin{tabular}{lrrr}" in text
    assert text.isascii()


def test_latex_escapes_all_that_it_would_read():
    name = r"50% of $a & #b_c {d} ~e ^f \g <h> |i| [j] – “k” é"
    remedy = "run: x_1 --y=$HOME/{z} → done"
    rows = [TableRow(name, {"fid": Cell(None, Skipped("no a\\b", remedy))}), TableRow("[k]", {})]
    text = as_latex(Table("t", ["fid"], rows, versions=VERSIONS))
    body = text.split(r"\midrule")[1]
    plain = body.replace(r"\\", "").replace(r"\bottomrule", "").replace(r"\end{tabular}", "")
    assert (
        r"50\% of \$a \& \#b\_c \{d\} \textasciitilde{}e \textasciicircum{}f \textbackslash{}g "
        r"\textless{}h\textgreater{} \textbar{}i\textbar{} [j]"
    ) in plain
    assert r"no a\textbackslash{}b" in plain
    assert r"x\_1 --y=\$HOME/\{z\}" in plain
    assert "{}[k] & ---" in plain
    for mark in "%$#_&":
        loose = re.findall(rf"(?<!\\){re.escape(mark)}", plain.replace(" & ", " "))
        assert not loose, (mark, loose)


def test_csv_and_json_hold_every_cell_unrounded(table):
    rows = list(csv.DictReader(io.StringIO(as_csv(table))))
    assert len(rows) == 6
    first, *_, skipped, last = rows
    assert (first["published"], first["value"], first["spread"]) == ("48.88", "47.123", "0.21")
    assert (skipped["value"], skipped["skipped"]) == ("", str(SKIPPED))
    assert (last["low"], last["high"], last["published"]) == ("30.5", "31.5", "")
    loaded = json.loads(as_json(table))
    cells = loaded["rows"][1]["cells"]
    assert cells["ssim"] == {
        "published": 0.53,
        "measured": None,
        "skipped": {"reason": SKIPPED.reason, "remedy": SKIPPED.remedy},
    }
    assert cells["clip"]["measured"]["pictures"] == 6000
    assert loaded["rows"][0]["cells"]["clip"] == {"published": None, "measured": None}


def test_best_is_marked_within_one_protocol_and_n_only(table):
    assert table.best("fid") == {"ours"}
    assert table.best("clip") == set()
    other = TableRow("other", {"clip": Cell(None, Measured(40.0, 6000, "c/2"))})
    assert Table("t", ["clip"], [*table.rows, other], versions=VERSIONS).best("clip") == set()
    same = TableRow("other", {"clip": Cell(None, Measured(40.0, 6000, "c/1"))})
    assert Table("t", ["clip"], [*table.rows, same], versions=VERSIONS).best("clip") == {"other"}


def test_sets_of_unequal_n_do_not_stand_in_one_column():
    rows = [
        TableRow("a", {"fid": Cell(None, Measured(9.0, 6000, "p"))}),
        TableRow("b", {"fid": Cell(None, Measured(8.0, 5000, "p"))}),
    ]
    with pytest.raises(ValueError, match=r"FID: .*a: 6000, b: 5000"):
        Table("t", ["fid"], rows)
    with pytest.raises(ValueError, match="no column 'is'"):
        Table("t", ["is"], rows)


def test_untrained_networks_are_said_in_every_format():
    rows = [TableRow("a", {"fid": Cell(None, Measured(9.0, 64, "untrained:inception/x"))})]
    table = Table("t", ["fid"], rows, versions=VERSIONS)
    for suffix, write in FORMATS.items():
        mark = "untrained:" if suffix == ".csv" else "MADE WITH UNTRAINED NETWORKS"
        assert mark in write(table)


def test_measured_beside_published_keeps_the_papers_rows_and_adds_ours():
    ours = {
        "MMFace-DiT (F)": {"fid": Measured(17.0, 6000, "p"), "kid": Measured(0.01, 6000, "p")},
        "real pictures": {"accuracy": Measured(93.4, 6000, "q")},
    }
    table = Table.beside(TABLE_1, ours)
    assert [row.name for row in table.rows][-2:] == ["MMFace-DiT (F)", "real pictures"]
    assert table.metrics[-1] == "kid"
    assert table.title == "Text and mask (table 1 of arXiv 2603.29029)"
    assert "16.63 / 17.00" in as_markdown(table)
    assert "0.01000" in as_markdown(table)
    assert table.versions == installed_versions()


def test_a_table_is_written_by_its_suffix_and_whole(table, tmp_path):
    for suffix, write in FORMATS.items():
        path = tmp_path / "sub" / f"results{suffix}"
        write_table(table, path)
        assert path.read_text(encoding="utf-8") == write(table)
    assert len(list((tmp_path / "sub").iterdir())) == len(FORMATS)
    with pytest.raises(ValueError, match=r"\.docx has no suffix"):
        write_table(table, tmp_path / "results.docx")
