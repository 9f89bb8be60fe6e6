"""Records of every kind read back as they were written; pictures that show their figures; one page of it all."""

import dataclasses
import json
import math
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import against_attention, report
from benchmarks.gpu import report as gpu_report
from benchmarks.gpu.kernels import Kernel
from benchmarks.gpu.machine import GpuLimits
from benchmarks.gpu.measure import Figures
from benchmarks.gpu.shapes import shapes
from benchmarks.harness import record
from benchmarks.harness.case import Case, Unavailable, Variant
from benchmarks.harness.limits import Limits
from benchmarks.harness.measure import Outcome
from benchmarks.harness.work import PASSES, Work
from benchmarks.reports import curves, pictures, records
from benchmarks.reports.records import NoTimes, read_record
from medsora.errors import UserError, run_command

RESULTS = Path(report.RESULTS)
LIMITS = Limits(copy=1e9, operations=2e9, exponentials=4e9, threads=1, source="made up")
CHIP = {"name": "NVIDIA X <1>", "capability": "9.0", "multiprocessors": 132, "cuda": "13.0", "triton": "3.9.0"}
MIXERS = ("mixers-reference", "mixers-native", "full-attention", "full-attention+compiled")


def spread(median: float) -> list[float]:
    return [median * share for share in (0.8, 0.9, 1.0, 1.1, 1.3)]


def case_row(outcomes: dict[str, Outcome], level="operator", shape="64", passes=PASSES[0], work=None, **facts):
    case = Case(
        level=level,
        operator="square" if level == "operator" else f"{level} thing",
        shape=shape,
        dtype=torch.float32,
        passes=passes,
        work=work,
        inputs=dict,
        differentiated=(),
        definition=torch.square,
        variants=tuple(Variant(name, torch.square) for name in outcomes),
        facts=facts,
    )
    return record.case_record(case, outcomes, LIMITS)


def operators() -> dict:
    """Two shapes, both passes, a variant that is missing once and one that is below the floor."""
    rows = []
    for shape, size in (("64 x 64", 1e6), ("4096 x 64, both directions", 64e6)):
        for number, passes in enumerate(PASSES, start=1):
            floor = size * number / LIMITS.copy
            outcomes = {
                "reference": Outcome(spread(20 * floor)),
                "native": Outcome(spread((0.7 if number == 1 else 2.5) * floor)),
                "torch.compile": Outcome(spread(9 * floor)),
            }
            if number == 2 and size > 1e6:
                outcomes["torch.compile"] = Outcome(failure=Unavailable("less exact than allowed"))
            rows.append(case_row(outcomes, shape=shape, passes=passes, work=Work(bytes=size * number, operations=0)))
    return record.run_record(rows, LIMITS, [0.1, 0.2, 0.3])


def layers() -> dict:
    """Powers: attention grows by 1.5 and is crossed at 1000 tokens, the mixers by 1; memory likewise."""
    rows = []
    for tokens in (256, 1024, 4096):
        for number, passes in enumerate(PASSES, start=1):
            share = tokens / 1000
            times = dict(zip(MIXERS, (4 * share, share, share**1.5, 0.5 * share**1.5)))
            outcomes = {name: Outcome(spread(number * time), peak=int(1e6 * time)) for name, time in times.items()}
            outcomes["mixers-native"].facts = {"parameters": 3_900_000}
            outcomes["full-attention"].facts = {"sdpa": {"whole": {"default": "flash", "fastest": "math"}}}
            rows.append(case_row(outcomes, "layer", f"{tokens} tokens", passes, tokens=tokens))
    return record.run_record(rows, LIMITS, None)


def models() -> dict:
    """A step with clips a second, memory, and a breakdown as benchmarks.breakdown writes it."""
    outcomes = {"mixers-native": Outcome(spread(0.5), peak=3 * 10**9), "full-attention": Outcome(spread(1.0))}
    row = case_row(outcomes, "model", "tiny", PASSES[1], clips=8)
    profiled = case_row({"mixers-native": Outcome(spread(0.5))}, "model", "tiny", PASSES[1])
    profiled["operator"] += ", profiled"
    kinds = {f"kind {number}": 0.01 * number for number in range(1, 12)}
    parts = {"spatial mixer": {"kind 1": 0.01, "kind 2": 0.02}, "ends": {"kind 11": 0.11}}
    profiled["variants"]["mixers-native"] |= {"breakdown": kinds, "parts": parts}
    return record.run_record([row, profiled], LIMITS, None)


def gpu() -> dict:
    """As benchmarks.gpu_scan writes it: a case, a block, one that was skipped."""
    limits = GpuLimits(copy=3e12, operations=8e14, exponentials=4e12)
    figures = {
        "triton": Figures(Outcome(spread(1e-4)), Outcome(spread(3e-4)), {"out 0": 1e-3}, 10**7, 4),
        "definition": Figures(Outcome(), Outcome(spread(2e-2)), {"out 0": 1e-3}, 10**9, 0, "too many launches"),
        "mamba_ssm": Figures(failure="mamba_ssm is not installed"),
    }
    run = gpu_report.run_row(torch.device("cpu"), limits, None, meaningless=False) | {"gpu": CHIP}
    row = gpu_report.case_row(shapes(quick=True)[0], PASSES[0], figures, limits, "float64")
    gpu_report.add_kernels(row, {"triton": [Kernel("scan_kernel", 1, 7e-5), Kernel("norm_kernel", 2, 2e-5)]})
    block = {"block": "block, batch 8", "batch": 8, "grid": [6, 8, 8], **gpu_report.variants_row(figures)}
    run |= {"cases": [row], "blocks": [block], "skipped": {"4 x 4096, forward": "too little time was left"}}
    return run


KINDS = {"operators": operators, "layers": layers, "models": models, "gpu": gpu}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A record of each kind in a file."""
    made = tmp_path_factory.mktemp("records")
    for name, kind in KINDS.items():
        record.write(kind(), made / f"{name}.json")
    return made


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn, laid out as they are in their files."""
    seen = []

    def kept(figure, path, write=pictures.write):
        write(figure, path)
        seen.append(figure)

    monkeypatch.setattr(pictures, "write", kept)
    monkeypatch.setattr(curves, "write", kept)
    return seen


def chosen(found, subject: str) -> list:
    return [row for row in found.rows if row.subject == subject]


# Records


@pytest.mark.parametrize("name", ["operators", "layers", "models"])
def test_rows_are_what_the_harness_recorded(folder, name):
    found = read_record(folder / f"{name}.json")
    cases = KINDS[name]()["cases"]
    rows = iter(found.rows)
    for case in cases:
        for variant, figures in case["variants"].items():
            row = next(rows)
            assert (row.case, row.level, row.variant) == (case["case"].strip(), case["level"], variant) or (
                "profiled" in row.subject
            )
            assert (row.time.median, row.time.lower, row.time.upper) == (figures["median"], *figures["quartiles"])
            assert (row.floor, row.tokens) == (case.get("floor", {}).get("total"), case.get("tokens"))
            assert (row.peak_memory, row.clock) == (figures["peak_memory"], "wall")
            assert row.clips_per_second == figures.get("clips_per_second")
    assert next(rows, None) is None
    assert found.machine == KINDS[name]()["environment"]["processor"] and found.facts["command"]


def test_what_was_not_timed_and_the_kernels_of_attention_are_read(folder):
    (missing,) = read_record(folder / "operators.json").not_timed
    assert missing[1:] == ("torch.compile", "less exact than allowed")
    notes = {row.variant: row.note for row in read_record(folder / "layers.json").rows}
    assert notes == dict.fromkeys(MIXERS, "") | {"full-attention": "whole: math, by default flash"}


def test_a_gpu_record_is_read_with_its_chip_device_times_and_eager_calls(folder):
    found = read_record(folder / "gpu.json")
    assert found.machine == CHIP["name"] and "132 multiprocessors" in found.facts["GPU"]
    ours, definition = found.rows[:2]
    assert (ours.level, ours.subject, ours.clock, definition.clock) == ("operator", "path_scan", "device", "eager")
    assert ours.time.median == 1e-4 and ours.eager.median == 3e-4 and definition.time.median == 2e-2
    assert ours.floor > 0 and ours.peak_memory == 10**7 and ours.breakdown == {"scan_kernel": 7e-5, "norm_kernel": 2e-5}
    assert [row.level for row in found.rows[2:]] == ["layer", "layer"] and found.rows[2].shape == "batch 8"
    assert ("4 x 4096, forward", "all", "too little time was left") in found.not_timed


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_committed_record_is_read_or_holds_no_times(path):
    raw = json.loads(path.read_text())
    try:
        found = read_record(path)
    except NoTimes:
        assert "cases" not in raw
        return
    rows = raw.get("cases") or raw.get("blocks") or (raw["steps"] if isinstance(raw["steps"], list) else [])
    medians = [
        v.get("median") or (v.get("device") or v["eager"])["median"] for r in rows for v in r["variants"].values()
    ]
    medians = medians or [value for stage in raw["median"].values() for value in stage.values()]
    assert sorted(row.time.median for row in found.rows) == sorted(medians) and medians


DAMAGES = {
    "not json": (lambda raw: "{", "is not JSON"),
    "a list": (lambda raw: [raw], "holds no times"),
    "no times": (lambda raw: {"rows": [], "steps": 3}, "holds no times"),
    "a later format": (lambda raw: raw | {"format": 2}, "got a record of format 2, wants 1"),
    "an interpreter's": (lambda raw: raw | {"times_are_meaningless": True}, "Triton's interpreter"),
    "no machine": (lambda raw: raw | {"environment": {}}, "incomplete or damaged: 'processor' is missing"),
    "a variant without times": (lambda raw: changed(raw, "median", None), "incomplete or damaged: 'eager' is missing"),
    "a time below 0": (lambda raw: changed(raw, "median", -1.0), "got a time of -1.0"),
    "a time that is a text": (lambda raw: changed(raw, "median", "1 s"), "got a time of '1 s'"),
    "half of the quartiles": (lambda raw: changed(raw, "quartiles", [1.0]), "not enough values to unpack"),
}


def changed(raw: dict, name: str, value) -> dict:
    figures = raw["cases"][1]["variants"]["native"]
    figures.pop(name)
    figures.update({name: value} if value is not None else {})
    return raw


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_record_is_one_sentence_with_its_name(tmp_path, capsys, damage):
    damaged, message = DAMAGES[damage]
    content = damaged(operators())
    path, pages = tmp_path / "bad.json", tmp_path / "pages"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    assert run_command(lambda: report.main([str(path), f"--output={pages}"])) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: ") and message in line
    assert not pages.exists()


def test_without_names_what_holds_no_times_is_passed_over_and_told(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "a.json").write_text((folder / "operators.json").read_text())
    (tmp_path / "b.json").write_text('{"rows": []}')
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert [found.name for found in report.read_records([])] == ["a"]
    assert re.fullmatch(r"left out: \S+b.json: holds no times.*\n", capsys.readouterr().err)
    (tmp_path / "a.json").unlink()
    with pytest.raises(UserError, match="no records in"):
        report.read_records([])


# Pictures


def test_bars_reach_from_the_floor_to_the_multiple_of_it(folder, drawn, tmp_path):
    rows = read_record(folder / "operators.json").rows
    styles = pictures.styles_of([row.variant for row in rows])
    pictures.draw_floor_bars(tmp_path / "a.png", rows, styles, "square")
    (figure,) = drawn
    for panel, passes in zip(figure.axes, PASSES):
        wanted = [row.time.median / row.floor for row in rows if row.passes == passes]
        # A bar below the floor lies left of it.
        ends = [max(b.get_x(), b.get_x() + b.get_width(), key=lambda x: abs(math.log(x))) for b in panel.patches]
        assert ends == pytest.approx(wanted) and panel.get_xscale() == "log"
    texts = {text.get_text() for panel in figure.axes for text in panel.texts}
    assert "torch.compile: not timed" in texts and "floor 64 ms" in texts
    assert legend(figure)[:3] == ["reference", "native", "torch.compile"]
    require_apart(figure)


def test_gpu_bars_show_device_times_and_eager_calls(folder, drawn, tmp_path):
    rows = chosen(read_record(folder / "gpu.json"), "path_scan")
    pictures.draw_floor_bars(tmp_path / "a.png", rows, pictures.styles_of([row.variant for row in rows]), "scan")
    (figure,) = drawn
    (panel,) = figure.axes
    marks = [line for line in panel.lines if line.get_marker() == "D"]
    assert [mark.get_xdata()[0] for mark in marks] == [pytest.approx(3e-4 / rows[0].floor)]
    assert "one eager call" in legend(figure) and "20 ms eager" in {text.get_text() for text in panel.texts}
    require_apart(figure)


def test_memory_and_time_bars_begin_at_zero(folder, drawn, tmp_path):
    rows = chosen(read_record(folder / "models.json"), "model thing")
    styles = pictures.styles_of([row.variant for row in rows])
    pictures.draw_time_bars(tmp_path / "a.png", rows, styles, "step")
    pictures.draw_memory_bars(tmp_path / "b.png", rows[:1], styles, "memory")
    assert [[(b.get_x(), b.get_width()) for b in figure.axes[0].patches] for figure in drawn] == [
        [(0, 0.5), (0, 1.0)],
        [(0, 3e9)],
    ]
    assert "3 GB" in {text.get_text() for text in drawn[1].axes[0].texts}


def test_parts_add_up_to_the_whole_and_the_smallest_are_one(folder, drawn, tmp_path):
    (row,) = chosen(read_record(folder / "models.json"), "model thing, profiled")
    pictures.draw_breakdown(tmp_path / "a.png", [row], "parts")
    bars = drawn[0].axes[0].patches
    *parts, outline = (bar.get_width() for bar in bars)
    assert outline == pytest.approx(500) and sum(parts) == pytest.approx(660)  # ms
    assert parts == pytest.approx([110, 100, 90, 80, 70, 60, 50, 40, 30, 30])
    assert legend(drawn[0])[-1] == "other" and len(legend(drawn[0])) == 10


def test_curves_are_the_points_with_their_exponents_and_crossings(folder, drawn, tmp_path):
    rows = read_record(folder / "layers.json").rows
    styles = pictures.styles_of(["something else", *(row.variant for row in rows)])
    curves.draw_scaling(tmp_path / "a.png", rows, styles, "layers")
    (figure,) = drawn
    forward = [row for row in rows if row.passes == PASSES[0]]
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 3]
    for line, name in zip(lines, MIXERS, strict=True):
        assert list(line.get_xdata()) == [256, 1024, 4096]
        assert list(line.get_ydata()) == [row.time.median for row in forward if row.variant == name]
    for line, handle in zip(lines, figure.legends[0].legend_handles, strict=True):
        for look in ("color", "marker", "linestyle", "markerfacecolor"):
            assert getattr(line, f"get_{look}")() == getattr(handle, f"get_{look}")()
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert sorted(texts[1:]) == ["1.00", "1.00", "1.50", "1.50"]
    assert texts[0].splitlines()[:2] == [
        "mixers-native:",
        "faster than full-attention from about 1,000 tokens on (2.02 times at 4,096)",
    ]
    circles = [line for line in figure.axes[0].lines if line.get_marker() == "o" and len(line.get_xdata()) == 1]
    assert circles[0].get_xdata()[0] == pytest.approx(1000) and circles[0].get_ydata()[0] == pytest.approx(1.0)
    assert legend(figure) == list(MIXERS) and len(figure.axes) == 4
    require_apart(figure)


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def require_apart(figure) -> None:
    """No text lies on another one or outside the picture."""
    figure.canvas.draw()  # in the resolution of its own, not in that of the file
    renderer = figure.canvas.get_renderer()
    texts = [text for axes in figure.axes for text in axes.texts] + figure.legends[0].get_texts()
    texts += [axes.xaxis.label for axes in figure.axes] + [axes.title for axes in figure.axes]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts if text.get_text()]
    for (one, first), (other, second) in combinations(boxes, 2):
        assert not first.padded(-1).overlaps(second.padded(-1)), f"{one!r} lies on {other!r}"
    for text, box in boxes:
        assert figure.bbox.padded(1).contains(box.x0, box.y0) and figure.bbox.padded(1).contains(box.x1, box.y1), text


def test_a_legend_takes_as_many_columns_as_the_picture_has_room_for(drawn, tmp_path):
    names = [f"{name}-attention{suffix}" for name in ("full", "factorised", "windowed") for suffix in ("", "+compiled")]
    outcomes = {name: Outcome(spread(0.5), peak=10**6) for name in names}
    record.write(record.run_record([case_row(outcomes, "model")], LIMITS, None), tmp_path / "a.json")
    rows, styles = read_record(tmp_path / "a.json").rows, pictures.styles_of(names)
    pictures.draw_time_bars(tmp_path / "a.png", rows, styles, "step")
    pictures.draw_memory_bars(tmp_path / "b.png", rows, styles, "step")
    assert [legend(figure)[: len(names)] for figure in drawn] == [names] * 2 and "quartiles" in legend(drawn[0])
    for figure in drawn:
        require_apart(figure)


def test_variants_are_told_apart_and_compiled_ones_striped():
    names = ["native", "reference", *(f"variant {number}" for number in range(12)), "variant 0+compiled"]
    styles = pictures.styles_of(names)
    assert len({(style["color"], style["hatch"]) for style in styles.values()}) == len(names)
    assert styles["variant 0+compiled"]["color"] == styles["variant 0"]["color"]
    assert pictures.styles_of(["reference"])["reference"] == styles["reference"]


def test_crossings_say_who_is_faster_from_where_or_at_all_sizes():
    ours = [(100, 1.0), (1000, 10.0)]
    found = {
        "mixers": ours,
        "steeper": [(100, 0.5), (1000, 50.0)],
        "flatter": [(100, 5.0), (1000, 5.0)],
        "fast": [(100, 0.1), (1000, 1.0)],
        "slow": [(100, 2.0), (1000, 20.0)],
        "elsewhere": [(7, 1.0)],
    }
    sentences = {other: (tokens, sentence) for other, tokens, sentence in curves.crossings(found)}
    assert sentences["steeper"][0] == pytest.approx(200) and sentences["steeper"][1] == (
        "mixers: faster than steeper from about 200 tokens on (5 times at 1,000)"
    )
    assert sentences["flatter"][0] == pytest.approx(500) and sentences["flatter"][1] == (
        "mixers: slower than flatter from about 500 tokens on (2 times at 1,000)"
    )
    assert sentences["fast"] == (None, "mixers: slower than fast at all sizes (10 times at 1,000)")
    assert sentences["slow"] == (None, "mixers: faster than slow at all sizes (2 times at 1,000)")
    assert "elsewhere" not in sentences and curves.crossings({"full": ours}) == []


@pytest.mark.parametrize("places", [[], [0.1, 0.5], [0.5, 0.5, 0.5], [0.1, 0.12, 0.13, 0.6, 0.61], [0.0, 0.01, 0.06]])
def test_labels_are_moved_apart_about_their_middle(places):
    moved = curves.apart(places, 0.05)
    assert len(moved) == len(places) and sum(moved) == pytest.approx(sum(places))
    assert all(after - before >= 0.05 - 1e-12 for before, after in zip(moved, moved[1:]))
    kept = curves.below_top(moved, 0.05, top=0.5)
    assert all(after - before >= 0.05 - 1e-12 for before, after in zip(kept, kept[1:])) and max(kept, default=0) <= 0.5
    assert curves.below_top(moved, 0.05, top=2.0) == moved
    if all(after - before >= 0.05 for before, after in zip(places, places[1:])):
        assert moved == places


# The page


def test_the_page_holds_everything(folder, tmp_path, capsys):
    report.main([*(str(folder / f"{name}.json") for name in KINDS), f"--output={tmp_path}"])
    page = (tmp_path / "index.html").read_text()
    files = sorted(tmp_path.glob("*.png"))
    assert f"{len(KINDS)} records, {len(files)} pictures" in capsys.readouterr().out
    assert page.count("data:image/png;base64,") == len(files) and not re.search(r'(src|href)="(?!data:|#)', page)
    names = {path.name for path in files}
    assert {
        "operators-square-float32.png",
        "layers-layer-thing-float32.png",
        "models-model-thing-float32-memory.png",
        "models-model-thing-profiled-float32-forward-backward-parts.png",
        "gpu-path_scan-bfloat16.png",
        "gpu-path_scan-bfloat16-forward-breakdown.png",
    } <= names
    for path in files:
        with Image.open(path) as image:
            assert (np.asarray(image.convert("L")) < 128).mean() > 0.002 and max(image.size) < 4000
    assert page.count("<h2") == 2 and "NVIDIA X &lt;1&gt;" in page  # the processor and the chip
    assert page.count("<tr>") > sum(len(read_record(folder / f"{name}.json").rows) for name in KINDS)
    for text in ("less exact than allowed", "mamba_ssm is not installed", "clips/s", "math, by default flash"):
        assert text in page
    assert "mixers-native: faster than full-attention from about 1,000 tokens on (2.02 times at 4,096)" in page
    assert "3.90 M" in page


# Against attention


def test_mixers_over_attention_are_a_table_and_a_sentence_a_type(folder, capsys):
    against_attention.main([str(folder / "layers.json")])
    lines = capsys.readouterr().out.splitlines()
    # The fastest on each side: compiled attention takes 0.5 share ** 1.5 where the mixers take one share of 1.024 s.
    share = [tokens / 1000 for tokens in (256, 1024, 4096)]
    ratios = [f"{one / (0.5 * one**1.5):.2f}" for one in share]
    assert lines[2:5] == [
        f"| layer, {tokens}, float32 | {time} | {ratio} | - | - |"
        for tokens, time, ratio in zip(
            ("256 tokens", "1,024 tokens", "4,096 tokens"), ("512 ms", "2.05 s", "8.19 s"), ratios
        )
    ]
    assert "In float32 the mixers are faster than full attention from about 4,000 tokens on" in lines[-1]
    assert lines[-1].endswith("(measured: 256 to 4,096).")
    with pytest.raises(UserError, match="operators.json: has no mixers beside attention"):
        against_attention.main([str(folder / "operators.json")])


def test_times_are_compared_by_one_clock():
    wall = records.Row("layer", "x", "", "", "", "a", records.Timing(6.0, 6.0, 6.0, 1), clock="eager")
    timing = [records.Timing(seconds, seconds, seconds, 1) for seconds in (2.0, 4.0)]
    replayed = dataclasses.replace(wall, time=timing[0], clock="device", eager=timing[1])
    assert wall.times_as_long(replayed) == 1.5 and replayed.times_as_long(replayed) == 1.0


def test_records_of_one_name_keep_pictures_of_their_own(folder, tmp_path):
    again = tmp_path / "again"
    again.mkdir()
    (again / "models.json").write_text((folder / "models.json").read_text())
    records = report.read_records([folder / "models.json", again / "models.json"])
    assert report.unique_names(records) == ["models", "models-2"]
    report.write_report(records, tmp_path / "pages")
    assert len(list((tmp_path / "pages").glob("models-2-*.png"))) == 4


def test_an_output_that_is_a_file_is_refused(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--output: got .*file, which is a file, wants a folder"):
        report.main([str(folder / "models.json"), f"--output={tmp_path / 'file'}"])
