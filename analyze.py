"""Plot runs and compare rules: `python analyze.py` for the most recent run, or `python analyze.py FOLDER [FOLDER ...]`.

A run folder gets its curves and attention maps, and is compared with the latest classical run of the same settings and
seed beside it. A folder of runs, such as results/, is a study: its arms are compared seed by seed, in tables, figures
and report.html; question.json in it says which comparison counts (report/study.py), without it runs of different
models, data or sizes are sections of their own. A folder of such folders stands for each. Output: FOLDER/analysis/.
"""

import itertools
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
    for folder in itertools.chain.from_iterable(map(opened, folders)):
        try:
            if not is_run(folder) and not holds_runs(folder):
                raise ValueError("holds no run, and no folder of runs; `python train.py` makes one")
            paths = analyze_run(folder) if is_run(folder) else analyze_study(folder)
            print(*(f"  {path}" for path in paths), sep="\n")
            for path in [path for path in paths if path.name in ("report.html", "comparison.png")][:1] or paths[:1]:
                print(f"look first at {path}")
            analysed += 1
        except (ValueError, OSError) as error:
            print(f"skipped {folder}: {one_line(error)}", file=sys.stderr)
    return 0 if analysed else 2


def is_run(folder):
    """Whether a path is to be read as a run: it holds a file of one, or is no folder, which the reader then says."""
    return not folder.is_dir() or any((folder / name).exists() for name in ("config.json", "metrics.csv"))


def holds_runs(folder):
    """Whether a folder is one of runs, and no run itself."""
    return not is_run(folder) and any(folder.glob("run_*/config.json"))


def opened(folder):
    """[folder], or, where that is no run and holds none, the folders in it that do, if any."""
    try:
        if is_run(folder) or holds_runs(folder):
            return [folder]
        return sorted(filter(may_hold_runs, folder.iterdir())) or [folder]
    except OSError:
        return [folder]  # what is wrong with it is said where it is read


def may_hold_runs(folder):
    """holds_runs; True where it cannot be known, which is then said where the folder is read."""
    try:
        return holds_runs(folder)
    except OSError:
        return True


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
    first, last = pair.ordered(run, partner)
    print(f"  compared with {partner['folder']}: {pair.compare_pair(first, last)}")
    return [
        *save_or_explain(pair.save_curves_of_both, out / "comparison.png", first, last),
        *save_or_explain(save_attention_of_both, out / "attention_of_both.png", first, last),
    ]


def analyze_study(folder):
    """Save figures, report.html, report.md and comparisons.json of a folder of runs in FOLDER/analysis/, and return
    their paths; figures of all sections but the first in a folder of their own in there.

    Prints the tables of results and what they show. Raises ValueError if the folder holds no finished run.
    """
    from report import page, study, study_figures  # slow to import: scipy, statsmodels and qiskit

    studies, out = study.read_studies(folder), folder / "analysis"
    paths, contents = [], []
    for number, (found, heading) in enumerate(zip(studies, study.headings(studies), strict=True), 1):
        print(f"\n{folder}: {heading}, {len(found['runs'])} run{'s' * (len(found['runs']) > 1)}")
        place = out if number == 1 else out / f"section_{number}"
        place.mkdir(parents=True, exist_ok=True)
        figures = study_figures.save_study_figures(place, found)
        contents.append((heading, page.report_content(found, figures)))
        paths += [path for path, _ in figures]
        print_section(contents[-1][1])
    summaries = [study.summary(found) for found in studies]
    write_json(out / "comparisons.json", summaries[0] if len(summaries) == 1 else summaries)
    return [*paths, *page.write_report(out, contents), out / "comparisons.json"]


def print_section(content):
    """Print the tables of results and the sentences of a report's section."""
    for table in content["results"]:
        print_table(*table)
    print("\n" + "\n".join(content["sentences"] + [f"- {sentence}" for sentence in content["others"]]))


def print_table(title, header, rows):
    """Print a table in columns as wide as their longest cell."""
    print(f"\n{title}")
    widths = [max(len(str(cell)) for cell in column) for column in zip(header, *rows, strict=True)]
    for row in [header, *rows]:
        print("  " + "  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)))


if __name__ == "__main__":
    command_line.run_as_script(main, command_line.parse_or_exit(sys.argv[1:], parse))
