"""Plot runs and compare rules: `python analyze.py` for the most recent run, or `python analyze.py FOLDER [FOLDER ...]`.

A run folder gets its curves and attention maps, and is compared with the latest classical run of the same settings and
seed beside it. A folder of runs, such as results/, is a study: its arms are compared seed by seed, in tables, figures
and report.html; question.json in it says which comparison counts (report/study.py). Output goes to FOLDER/analysis/.
"""

import os
import sys
from pathlib import Path

import config
from harness import command_line, run_folder
from harness.files import write_json
from report.attention import save_attention_maps, save_attention_of_both
from report.figures import caption, one_line, save_curves, save_or_explain


def parse(argv):
    """The command line as an argparse Namespace: runs (list of str), results_dir, debug. Raises ValueError."""
    parser = config.OneLineParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="run folders, or folders of runs; default: the most recent run"
    )
    parser.add_argument(
        "--results_dir", default=config.parse().runs[0].results_dir, help="where run folders are [%(default)s]"
    )
    return parser.parse_args(argv)


def main(command):
    """Analyse what the command names, and return the exit status: 2 if nothing could be analysed, else 0.

    Raises ValueError if it names nothing and there is no run.
    """
    folders = [Path(name) for name in command.runs]
    folders = folders or [run_folder.most_recent(Path(os.path.expanduser(command.results_dir)))]
    analysed = 0
    for folder in folders:
        try:
            if folder.is_dir() and not any(folder.iterdir()):
                raise ValueError("holds no run, `python train.py` makes one")
            is_study = not (folder / "config.json").exists() and any(folder.glob("run_*/config.json"))
            for path in analyze_study(folder) if is_study else analyze_run(folder):
                print(f"  {path}")
            analysed += 1
        except (ValueError, OSError) as error:
            print(f"skipped {folder}: {one_line(error)}", file=sys.stderr)
    return 0 if analysed else 2


def analyze_run(folder):
    """Save the figures of a run in FOLDER/analysis/ and return their paths. Raises ValueError if the run is broken."""
    run = run_folder.read(folder)
    out = folder / "analysis"
    out.mkdir(exist_ok=True)
    print(f"{folder}: {caption(run)}; {run['statistics']['status']} after {run['statistics']['steps']} steps")
    return [
        *save_or_explain(save_curves, out / "training_curves.png", run),
        *save_or_explain(save_attention_maps, out / "attention_maps.png", run),
        *compare_run(run, out),
    ]


def compare_run(run, out):
    """Save the figures of a finished run beside classical training in the folder out, and return their paths.

    Prints the difference in a line; where there is no such run, the command that makes one.
    """
    from report import pair  # slow to import: scipy and statsmodels

    if run["statistics"]["status"] != "finished":
        return []
    partner = pair.find_partner(run)
    if partner is None:
        print(f"  to compare it with another rule, first: {pair.command_for_partner(run)}")
        return []
    print(f"  compared with {partner['folder']}: {pair.compare_pair(run, partner)}")
    first, last = pair.ordered(run, partner)
    return [
        *save_or_explain(pair.save_curves_of_both, out / "comparison.png", first, last),
        *save_or_explain(save_attention_of_both, out / "attention_of_both.png", first, last),
    ]


def analyze_study(folder):
    """Save figures, report.html, report.md and comparisons.json of a study in FOLDER/analysis/, and return their paths.

    Prints the tables of results and what they show. Raises ValueError if the folder holds no finished run.
    """
    from report import page, study, study_figures  # slow to import: scipy, statsmodels and qiskit

    found = study.read_study(folder)
    out = folder / "analysis"
    out.mkdir(exist_ok=True)
    figures = study_figures.save_study_figures(out, found)
    content = page.report_content(found, figures)
    reports = page.write_report(out, content)
    write_json(out / "comparisons.json", study.summary(found))
    for table in content["results"]:
        print_table(*table)
    print("\n" + "\n".join(content["sentences"] + [f"- {sentence}" for sentence in content["others"]]))
    return [path for path, _ in figures] + [*reports, out / "comparisons.json"]


def print_table(title, header, rows):
    """Print a table in columns as wide as their longest cell."""
    print(f"\n{title}")
    widths = [max(len(str(cell)) for cell in column) for column in zip(header, *rows, strict=True)]
    for row in [header, *rows]:
        print("  " + "  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)))


if __name__ == "__main__":
    command_line.run_as_script(main, command_line.parse_or_exit(sys.argv[1:], parse))
