"""The report: what it holds, and what it escapes."""

from conftest import fake_run, fake_study

from report.page import report_content, write_report
from report.study import compare_arms, conclude, group_arms
from report.study_figures import save_study_figures


def test_a_report_holds_everything_and_escapes_what_came_from_data(tmp_path):
    runs = fake_study(tmp_path, [0.1, 0.2, 0.15])
    runs += [fake_run(tmp_path, "quantum", seed, 0.8, shots=10) for seed in range(3)]
    arms = group_arms(runs)
    comparisons = compare_arms(arms)
    figures = save_study_figures(tmp_path, runs, arms, comparisons)
    names = {path.stem for path, _ in figures}
    assert names == {
        *("learning_curves", "cosine", "paired_differences", "accuracy_by_shots", "cost", "response", "covariance"),
    }
    content = report_content(runs, arms, comparisons, conclude(comparisons), figures)
    write_report(tmp_path, content | {"sentences": ["<script>alert(1)</script>", *content["sentences"]]})
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page and "http" not in page
    assert "<b>" not in page and "&lt;b&gt;data" in page
    assert page.count("data:image/png;base64,") == len(figures) and page.index("Conclusion") < page.index("<table")
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    for text in (r"a\|b", "![", "Paired differences", *content["sentences"]):
        assert text in markdown
    assert "quantum, shots 10 " in markdown and "-" in markdown


def test_every_table_row_of_the_markdown_has_the_cells_of_its_header(tmp_path):
    runs = fake_study(tmp_path, [0.1, 0.2])
    arms = group_arms(runs)
    content = report_content(runs, arms, compare_arms(arms), [], [])
    write_report(tmp_path, content)
    lines = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
    for title, header, rows in content["results"] + content["records"]:
        start = lines.index(f"## {title}") + 2
        table = lines[start : start + 2 + len(rows)]
        assert table[0] == "| " + " | ".join(header) + " |" and table[1] == "|" + "---|" * len(header)
        assert {line.replace(r"\|", "").count("|") for line in table} == {len(header) + 1}
        assert lines[start + 2 + len(rows) : start + 3 + len(rows)] in ([""], [])


def test_a_study_of_one_seed_has_no_interval_anywhere(tmp_path):
    runs = fake_study(tmp_path, [0.1])
    arms = group_arms(runs)
    accuracies, differences = report_content(runs, arms, compare_arms(arms), [], [])["results"]
    for row in accuracies[2]:
        assert row[3] == row[4] == "-"
    assert differences[2][0][4:7] == ["-", "-", "-"]
