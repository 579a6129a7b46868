"""The page of a study: made of rows alone, byte for byte; and that of the project is what its rows give."""

import numpy as np
import pytest
from click.testing import CliRunner

from metricgold.cli import main
from metricgold.study.definition import load_study, study_names
from metricgold.study.report import Figures, read_figures, render_study, write_report
from metricgold.study.results import COSTS, Results, write_csv
from tests.study.conftest import write_study
from tests.support import ROOT

EFFECTS = {"l2": 0.2, "l1": 0.15, "other": 0.2}


def write_rows(folder, *, seeds=3, scenes=8, **changes):
    """Rows of a study of three losses: l1 is better in domain by 0.05, on the benchmark nothing is."""
    levels = {name: None for name in EFFECTS}
    inference = {"steps": {str(steps): {"num_inference_steps": steps} for steps in (1, 2)}}
    write_study(folder, factors={"loss": levels}, inference=inference, seeds=list(range(seeds)), **changes)
    results = Results("tiny", load_study("tiny", folder / "studies"), folder / "studies/results")
    rng, rows, runs = np.random.default_rng(0), [], []
    of_scene = rng.normal(0, 0.05, scenes)
    for loss, abs_rel in EFFECTS.items():
        for seed in range(seeds):
            for steps in (1, 2):
                key = {"loss": loss, "steps": steps, "seed": seed}
                for of_set, effect in (("worlds", abs_rel), ("mine", 0.3)):
                    for scene in range(scenes):
                        error = effect + 0.01 * (steps == 1) + of_scene[scene] + rng.normal(0, 0.004)
                        figures = {"abs_rel": f"{error:.4g}", "delta1": "0.9", "vae_floor": "0.01"}
                        rows.append(key | {"set": of_set, "scene": f"s{scene}"} | figures)
                facts = {"digest": "d", "commit": "abc", "machine": "CPU, 2 cores"}
                runs.append(key | facts | dict.fromkeys(COSTS, 1) | {"passes": steps})
    write_csv(results.path, results.columns, rows)
    write_csv(results.runs_path, results.run_columns, runs)
    return results


def test_the_page_says_what_differs_and_what_is_not_known(tmp_path):
    write_rows(tmp_path)
    text = render_study("tiny", tmp_path / "studies")
    assert "**Question.** Is the one loss better than the other?" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| loss l1, steps 1 | loss l2, steps 1")]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    mean, low, high = (
        float(number) for number in cells[2].replace("(", "").replace(")", "").replace("to ", "").split()
    )
    assert low < -0.05 < high < 0 and abs(mean + 0.05) < 0.005
    assert cells[-2] == "decided" != cells[-1]  # the seeds that the undecided one would take
    in_domain, front, *_ = [line for line in text.splitlines() if line.startswith("- ")]
    better, undecided = in_domain.split("; ")
    assert better.startswith("- **in domain**: lower AbsRel") and "loss l1, steps 1 (-0.04" in better
    assert undecided.startswith("undecided: loss other, steps 1")
    assert front.endswith("loss l1, steps 1 (1 passes); loss l1, steps 2 (2 passes).")
    assert "18 runs, seeds 0, 1, 2; 8 scenes in domain, 8 scenes benchmarks; commits abc" in text


def test_a_study_that_has_begun_says_how_far_it_is_and_compares_nothing_with_nothing(tmp_path):
    results = write_rows(tmp_path)
    for path in (results.path, results.runs_path):
        head, *lines = path.read_text().splitlines()
        path.write_text("\n".join([head, *(line for line in lines if line.startswith("l2,1,0,")), ""]))
    text = render_study("tiny", tmp_path / "studies")
    assert "\n1 of 18 runs, seeds 0; 8 scenes in domain" in text
    (front, _) = [line for line in text.splitlines() if line.startswith("- ")]
    assert front == "- Pareto front of passes and AbsRel, in domain: loss l2, steps 1 (1 passes)."


def test_one_seed_decides_nothing_and_nobody_knows_how_many_would(tmp_path):
    write_rows(tmp_path, seeds=1)
    text = render_study("tiny", tmp_path / "studies")
    assert "undecided: " in text and "lower AbsRel:" not in text and " | not known | not known |" in text


def test_within_a_factor_s_levels_runs_are_compared_there(tmp_path):
    write_rows(tmp_path, within=["steps"])
    text = render_study("tiny", tmp_path / "studies")
    assert "| loss l1, steps 2 | loss l2, steps 2 |" in text and "| loss l2, steps 2 | loss" not in text


def test_only_seeds_and_scenes_that_both_have_are_paired(tmp_path):
    results = write_rows(tmp_path)
    rows = [row for row in results.rows() if not (row["loss"] == "l1" and row["seed"] == "2")]
    write_csv(results.path, results.columns, rows)
    figures = read_figures("tiny", tmp_path / "studies")
    assert figures.difference(("l1", "1"), "in domain").shape == (2, 8)
    assert figures.difference(("other", "1"), "in domain").shape == (3, 8)


def test_rows_of_a_killed_run_do_not_count(tmp_path):
    results = write_rows(tmp_path)
    whole = render_study("tiny", tmp_path / "studies")
    runs = results.runs()
    extra = [row | {"seed": "3", "abs_rel": "9"} for row in results.rows() if row["seed"] == "0"]
    write_csv(results.path, results.columns, [*results.rows(), *extra])
    assert render_study("tiny", tmp_path / "studies") == whole and results.runs() == runs


def test_the_command_needs_rows_alone_and_gives_the_same_bytes(tmp_path, monkeypatch):
    """In a folder without params, data or model, twice, and into a page that people wrote."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path)
    (tmp_path / "docs").mkdir()
    page, picture = tmp_path / "docs/studies.md", tmp_path / "docs/pictures/study-tiny.png"
    page.write_text("# Ours\n\nBefore.\n\n<!-- study tiny -->\n<!-- /study tiny -->\n\nAfter.\n")
    contents = []
    for _ in range(2):
        done = CliRunner().invoke(main, ["study", "tiny", "--report"])
        assert done.exit_code == 0, done.output
        contents.append((page.read_bytes(), picture.read_bytes()))
    assert contents[0] == contents[1]
    assert page.read_text().startswith("# Ours\n\nBefore.\n") and page.read_text().endswith("\nAfter.\n")
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size < 60_000


def test_a_page_that_is_not_there_is_begun_and_one_without_markers_is_refused(tmp_path):
    write_rows(tmp_path)
    write_report("tiny", tmp_path / "page.md", tmp_path / "studies")
    assert "| loss |" in (tmp_path / "page.md").read_text()
    (tmp_path / "page.md").write_text("# Ours\n")
    with pytest.raises(ValueError, match="study tiny"):
        write_report("tiny", tmp_path / "page.md", tmp_path / "studies")


def test_rows_of_other_factors_are_refused_with_their_file(tmp_path):
    results = write_rows(tmp_path)
    results.path.write_text(results.path.read_text().replace("loss,", "colour,", 1))
    with pytest.raises(ValueError, match=r"tiny.csv: has the columns colour"):
        render_study("tiny", tmp_path / "studies")
    write_rows(tmp_path)
    with results.path.open("a") as file:
        file.write("l1,1\n")
    with pytest.raises(ValueError, match=r"tiny.csv: line \d+: expected 8 columns"):
        render_study("tiny", tmp_path / "studies")


@pytest.mark.parametrize("name", study_names(ROOT / "studies"))
def test_the_manual_shows_what_the_committed_rows_give(name):
    page = (ROOT / "docs/studies.md").read_text()
    _, _, rest = page.partition(f"<!-- study {name} -->\n")
    assert rest.partition(f"\n<!-- /study {name} -->")[0] == render_study(name, ROOT / "studies")


def test_a_study_without_rows_says_how_to_get_them(tmp_path):
    write_study(tmp_path)
    figures = read_figures("tiny", tmp_path / "studies")
    assert isinstance(figures, Figures) and not figures.rows
    assert render_study("tiny", tmp_path / "studies").endswith("Not measured yet: `metricgold study tiny`.")
