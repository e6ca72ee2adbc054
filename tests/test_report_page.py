"""The report: what it holds, in which order, and what it escapes."""

import itertools

import numpy as np
from conftest import fake_run, fake_study
from scipy import stats

from report.page import report_content, write_report
from report.study import analyse
from report.study_figures import save_study_figures


def test_a_report_holds_everything_and_escapes_what_came_from_data(tmp_path):
    runs = fake_study(tmp_path, [0.1, 0.2, 0.15])
    runs += [fake_run(tmp_path, "quantum", seed, 0.8 + seed / 100, shots=10) for seed in range(3)]
    runs += [fake_run(tmp_path, "frozen", seed, 0.6) for seed in range(3)]
    question = {"question": "Is <script>alert(1)</script> | better?", "prediction": "no <b>"}
    question["primary"] = [{"update_rule": "quantum", "shots": 10}, "classical"]
    study = analyse(runs, question)
    figures = save_study_figures(tmp_path, study)
    content = report_content(study, figures)
    write_report(tmp_path, [("", content)])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page and "http" not in page
    assert "<b>" not in page and "&lt;b&gt;data" in page
    assert page.count("data:image/png;base64,") == len(figures) == 7
    order = [
        "<h1>Is",
        "Expected before the runs: no",
        "Primary comparison: quantum, 10 shots against classical",
        "Headroom, ",
    ]
    order += [
        "Comparisons</h2>",
        "Holm family",
        "Final accuracy and",
        "Paired differences of",
        "Recovered fraction",
        "<img",
    ]
    order += ["Settings all runs share", "Versions</h2>", "Runs</h2>"]
    places = [page.index(text) for text in order]
    assert places == sorted(places)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    for text in (r"a\|b", "![", "Paired differences", *content["sentences"], *content["others"]):
        assert text in markdown


def test_the_family_is_named_and_what_is_missing(tmp_path):
    runs = fake_study(tmp_path, [0.1, 0.2, 0.15, 0.1, 0.1, 0.1])
    runs += [fake_run(tmp_path, "gradient", seed, 0.8) for seed in range(6)]
    note = report_content(analyse(runs, {}), [])["note"]
    names = ("quantum against gradient", "quantum against classical", "gradient against classical")
    assert f"The Holm family, 3 comparisons: {'; '.join(names)}." in note
    question = {"question": "Q", "primary": ["quantum", "classical"], "secondary": [["quantum", "frozen"]]}
    content = report_content(analyse(runs, question), [])
    assert content["others"] == ["quantum against frozen: no runs to compare yet."]
    assert content["title"] == "Q" and "No Holm family." in content["note"]
    alone = report_content(analyse(runs[:1], {}), [])
    assert alone["title"] == "classical: compared seed by seed" and "nothing to compare" in alone["others"][0]


def test_every_table_row_of_the_markdown_has_the_cells_of_its_header(tmp_path):
    runs = fake_study(tmp_path, [0.1, 0.2]) + [fake_run(tmp_path, "frozen", seed, 0.5) for seed in (0, 1)]
    content = report_content(analyse(runs, {}), [])
    write_report(tmp_path, [("", content)])
    lines = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
    assert len(content["results"] + content["records"]) == 7
    for title, header, rows in content["results"] + content["records"]:
        start = lines.index(f"## {title}") + 2
        table = lines[start : start + 2 + len(rows)]
        assert table[0] == "| " + " | ".join(header) + " |" and table[1] == "|" + "---|" * len(header)
        assert {line.replace(r"\|", "").count("|") for line in table} == {len(header) + 1}
        assert lines[start + 2 + len(rows) : start + 3 + len(rows)] in ([""], [])


def test_a_study_of_one_seed_has_no_interval_anywhere(tmp_path):
    accuracies, differences = report_content(analyse(fake_study(tmp_path, [0.1]), {}), [])["results"]
    for row in accuracies[2]:
        assert row[3] == row[4] == "-"
    assert differences[2][0] == ["not tested", "quantum", "classical", 1, "+10.00", *["-"] * 6, "undecided"]


def test_the_tables_hold_the_numbers_of_the_runs(tmp_path):
    """Recomputed with scipy and by counting all flips of signs."""
    differences = np.array([0.02, -0.01, 0.03, 0.01, 0.0, 0.02])
    runs = fake_study(tmp_path, differences)
    for run in runs:
        run["statistics"]["evaluations"][-1]["loss"] = 0.4 + run["settings"]["seed"] / 100
    accuracies, comparisons = report_content(analyse(runs, {}), [])["results"]
    reached, losses = 0.7 + differences, 0.4 + np.arange(6) / 100
    low, high = stats.ttest_1samp(reached, 0).confidence_interval()
    row = next(row for row in accuracies[2] if row[0] == "quantum")
    assert row[1:4] == [6, f"{reached.mean():.4f}", f"{reached.std(ddof=1):.4f}"]
    assert row[4:] == [f"{low:.4f} to {high:.4f}", f"{losses.mean():.4f}", f"{losses.std(ddof=1):.4f}"]
    test = stats.ttest_1samp(differences, 0)
    low, high = 100 * np.array(test.confidence_interval())
    sums = np.array(list(itertools.product((-1, 1), repeat=6))) @ differences
    flips = (np.abs(sums) >= differences.sum() - 1e-12).mean()
    equal = max(
        stats.ttest_1samp(differences, -0.01, alternative="greater").pvalue,
        stats.ttest_1samp(differences, 0.01, alternative="less").pvalue,
    )
    (row,) = comparisons[2]
    assert row[1:6] == ["quantum", "classical", 6, f"{100 * differences.mean():+.2f}", f"{low:+.2f} to {high:+.2f}"]
    assert row[6:9] == [f"{p:.3f}" for p in (test.pvalue, flips, equal)] and row[-1] == "undecided"


def test_many_comparisons_of_too_few_seeds_are_one_sentence(tmp_path):
    runs = [fake_run(tmp_path, "quantum", seed, 0.7 + seed / 50, shots=2**i) for seed in (0, 1) for i in range(6)]
    content = report_content(analyse(runs, {}), [])
    assert content["others"] == ["5 comparisons of fewer than 6 seeds are undecided, see the table."]
    assert len(content["results"][1][2]) == 5
    few = report_content(analyse(runs[:3] + runs[6:9], {}), [])
    assert len(few["others"]) == 2 and all("undecided (" in sentence for sentence in few["others"])


def test_intervals_are_within_what_a_difference_can_be(tmp_path):
    content = report_content(analyse(fake_study(tmp_path, [0.3, -0.3]), {}), [])
    assert content["results"][1][2][0][5] == "-100.00 to +100.00"
    assert "95% interval -100.0 to +100.0" in content["others"][0]


def test_seconds_stand_in_a_table_by_stage(tmp_path):
    records = {
        title: (header, rows)
        for title, header, rows in report_content(analyse(fake_study(tmp_path, [0.1]), {}), [])["records"]
    }
    header, rows = records["Seconds per step, whatever else the machine did meanwhile"]
    assert header == ["arm", "forward", "backward", "quantum", "other", "together", "circuits per step"]
    assert rows[0] == ["quantum", *["0.333"] * 4, "1.333", "10"]


def test_sections_have_headings_and_each_figure_can_be_enlarged(tmp_path):
    studies = [analyse(fake_study(tmp_path, [0.1]), {}), analyse([fake_run(tmp_path, "quantum", 0, 0.7)], {})]
    (tmp_path / "section_2").mkdir()
    figures = [[(tmp_path / name, "A <caption>")] for name in ("one.png", "section_2/two.png")]
    for ((path, _),) in figures:
        path.write_bytes(b"png")
    contents = [(f"Task <{i}>", report_content(study, figures[i])) for i, study in enumerate(studies)]
    write_report(tmp_path, contents)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    places = [
        page.index(text) for text in ('<a href="#section1">Task', '<section id="section1">', '<section id="section2">')
    ]
    assert places == sorted(places) and "<h2>Task &lt;1&gt;</h2>" in page and "<h3>Figures</h3>" in page
    assert page.count('<label><input type="checkbox"><img alt="A &lt;caption&gt;"') == 2
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "## Task <1>" in markdown and "](section_2/two.png)" in markdown and "### Figures" in markdown
