"""The ablations: what their numbers mean, and one tiny run of two arms that goes on where it stopped."""

import json

import pytest

from benchmarks import ablations
from benchmarks.reports.ablation_summary import beyond_spread, compared, draw, loss_at, markdown, steps_to, summary

CURVE = [[10, 1.0], [20, 0.5], [30, 0.6], [40, 0.2]]
ABOUT = {"steps": 40, "vae_steps": 9, "seeds": [0, 1], "data": "builtin:phantom:3", "machine": "a machine"}


def test_steps_to_a_loss_is_where_the_curve_first_reaches_it():
    assert steps_to(CURVE, 0.75) == 15 and steps_to(CURVE, 0.5) == 20 and steps_to(CURVE, 0.4) == 35
    assert steps_to(CURVE, 1.5) == 10 and steps_to(CURVE, 0.1) is None and steps_to([[5, 0.3]], 0.4) == 5


def test_the_loss_at_a_step_lies_between_the_points():
    assert [loss_at(CURVE, step) for step in (0, 10, 15, 20, 35, 40, 99)] == [
        1,
        1,
        0.75,
        0.5,
        pytest.approx(0.4),
        0.2,
        0.2,
    ]


@pytest.mark.parametrize(
    "differences, larger",
    [((-1.0, -0.9), True), ((1.0, 0.2), False), ((-0.1, 0.3), False), ((2.0, 1.1, 1.5), True), ((0.0, 0.0), False)],
)
def test_a_difference_counts_where_all_seeds_show_it_and_more_than_they_differ(differences, larger):
    assert beyond_spread(differences) is larger


def test_arms_are_compared_seed_by_seed():
    arms = compared({"base": [1.0, 3.0], "a": [0.5, 2.5], "b": [None, 1.0], "c": [2.0, 2.0]}, "base")
    assert arms["base"] == {"values": [1.0, 3.0], "mean": 2.0}
    assert arms["a"] == {"values": [0.5, 2.5], "mean": 1.5, "difference": -0.5, "beyond_seeds": True}
    assert (arms["b"]["mean"], arms["b"]["difference"], arms["b"]["beyond_seeds"]) == (None, None, None)
    assert (arms["c"]["difference"], arms["c"]["beyond_seeds"]) == (0.0, False)
    assert compared({"base": [1.0], "a": [0.5]}, "base")["a"]["beyond_seeds"] is None  # one seed has no spread


def made_rows():
    """Losses in proportion to 1 / step; attention twice as fast a step and worse, alignment better."""
    factors = {"base": 1.0, "no alignment": 1.25, "raster": 1.1, "released order": 1.2, "factorised attention": 1.4,
               "full attention": 1.6}  # fmt: skip
    rows = []
    for seed in (0, 1):
        for arm, factor in factors.items():
            curve = [[step, factor * (10 + seed / 10) / step] for step in (10, 20, 30, 40)]
            seconds = 0.5 if "attention" in arm else 1.0
            rows.append({"arm": arm, "seed": seed, "curve": curve, "seconds_per_step": seconds, "parameters": 7})
        for arm in ablations.VAE_ARMS:
            rows.append({"arm": arm, "seed": seed, "psnr_db": 20.0 + len(arm), "ssim": 0.5})
    return rows


def test_each_question_has_its_table():
    tables = {table["title"]: table["arms"] for table in summary(made_rows())}
    reached = tables["Alignment: steps to the loss at which training without it ended"]
    assert reached["no alignment"]["mean"] == 40
    assert reached["base"]["values"] == [pytest.approx(32.0, abs=1)] * 2 and reached["base"]["beyond_seeds"]
    at_equal_time = tables["Scans or attention: held-out denoising loss at equal time"]  # 20 s: 20 of our steps
    assert at_equal_time["base"]["values"] == [pytest.approx(0.5), pytest.approx(0.505)]
    assert at_equal_time["full attention"]["values"] == [pytest.approx(0.4), pytest.approx(0.404)]
    compensation = tables["Compensation: PSNR on held-out frames"]
    assert compensation["spectral compensation"]["difference"] == len("spectral") - len("none")
    assert len(tables) == 9
    only = [row for row in made_rows() if row["arm"] in ("base", "raster", "released order")]
    assert [table["title"].split(":")[0] for table in summary(only)] == ["Scan order"]


def test_the_table_and_the_picture_say_how_little_they_bear(tmp_path):
    tables = summary(made_rows())
    text = markdown(tables, ABOUT)
    for words in ("tiny experiment", "40 steps", "2 seeds", "weak test", "| raster |", "a machine", "yes"):
        assert words in text, words
    rows = [row for row in made_rows() if row["arm"] != "no alignment"]
    assert "Alignment" not in markdown(summary(rows), ABOUT)
    for name, shown in (("whole", made_rows()), ("part", rows[:2])):
        draw(tmp_path / f"{name}.png", shown, summary(shown), ABOUT)
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_run_trains_its_arms_once_and_goes_on(tmp_path, capsys):
    small = ["--steps", "2", "--vae-steps", "1", "--seeds", "0", "--data", "builtin:phantom:4"]
    small += ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "out")]
    arms = ["base", "no alignment", "conv compensation"]
    ablations.main([*small, "--arms", *arms])
    assert f"{len(arms)} arms to train" in capsys.readouterr().out
    rows = {row["arm"]: row for row in json.loads((tmp_path / "out.json").read_text())["rows"]}
    assert all(rows[arm]["curve"][-1][0] == 2 and rows[arm]["seconds_per_step"] > 0 for arm in arms[:2])
    assert rows["base"]["probed"] == "held-out" and rows["conv compensation"]["psnr_db"] > 0
    assert rows["base"]["curve"] != rows["no alignment"]["curve"]
    (next((tmp_path / "work").glob("*/rows/no-alignment-0.json"))).unlink()
    ablations.main([*small, "--arms", *arms])
    assert "1 arms to train" in capsys.readouterr().out
    again = {row["arm"]: row for row in json.loads((tmp_path / "out.json").read_text())["rows"]}
    assert again["base"] == rows["base"] and again["no alignment"]["curve"] == rows["no alignment"]["curve"]
