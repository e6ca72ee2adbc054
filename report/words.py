"""What comparisons show, in plain words. Rows: as report/study.py makes and judges them."""

from report.labels import name_in_words
from report.statistics import ALPHA, LARGEST_N, SMALLEST_N
from update_rules import RULES

SMALLEST_HEADROOM = 0.08  # of classical over frozen: below this a comparison of rules means little


def points(fraction, sign=True):
    """A difference of accuracies as text, in points."""
    return f"{round(100 * fraction, 1) + 0.0:{'+' if sign else ''}.1f} points"  # + 0.0: no negative zero


def clipped(interval, lowest=-1.0, highest=1.0):
    """An interval within what its quantity, a difference of accuracies, can be: Student's knows no bounds; or None."""
    return interval and [min(max(end, lowest), highest) for end in interval]


def listed(names):
    """Names as text: a, b and c."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def with_n(text, *sizes):
    """A label of figures with its number of seeds, or the fewest and the most; no line break separates them."""
    n = " to ".join(map(str, dict.fromkeys((min(sizes), max(sizes)))))
    return f"{text} (n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{n})"


def p_in_words(p):
    """A p-value as text, with as many digits as it takes to see on which side of 0.05 it lies."""
    digits = next(digits for digits in range(3, 17) if (round(p, digits) < ALPHA) == (p < ALPHA))
    return "p < 0.001" if p < 0.001 else f"p = {p:.{digits}f}"


def conclusion(row):
    """What one comparison shows, a sentence with one verdict: better, worse, equivalent or undecided."""
    same_step = row["base_rule"] == "classical" and row["optimizer"] == "adamw"  # then the circuits alone differ
    isolated = RULES["gradient" if same_step else row["base_rule"]].isolates
    head = f"{row['arm']} against {row['base']}"
    if row["rule"] == "quantum" and isolated:
        head += f" ({isolated})"
    if len(row["changed"]) > (row["rule"] == row["base_rule"]):
        head += f" (they differ in {listed(list(map(name_in_words, row['changed'])))})"
    return f"{head}: {single(row) if row['n'] == 1 else several(row)}."


def several(row):
    """The verdict on several seeds, and the numbers it rests on."""
    low, high = (f"{100 * end:+.1f}" for end in clipped(row["interval"]))
    level = "95% interval" if row["alpha"] == ALPHA else "simultaneous 95% interval"
    few = ", too few for a sign-flip test to reach p < 0.05" if row["n"] < SMALLEST_N else ""
    numbers = f"{level} {low} to {high}, {p_in_words(row['p_adjusted'])}, n = {row['n']}{few}"
    if row["verdict"] == "equivalent":
        other = ", though not equal" if row["p_adjusted"] < ALPHA else ""
        return (
            f"equivalent within {round(100 * row['margin'], 9)} points{other} ({points(row['mean'])}, {numbers}; "
            f"two one-sided tests {p_in_words(row['p_equal_adjusted'])})"
        )
    if row["verdict"] == "undecided":
        seeds = f"about {row['seeds']}" if row["seeds"] else f"more than {LARGEST_N}"
        shown = points(row["smallest_effect"], sign=False) if row["smallest_effect"] < 1 else "above 100 points"
        return (
            f"undecided ({points(row['mean'])}, {numbers}); the smallest effect that this n could have shown is "
            f"{shown}, and {seeds} seeds would decide if the difference stays as it is"
        )
    text = f"{row['verdict']} by {points(abs(row['mean']), sign=False)} ({numbers})"
    if row["n"] >= SMALLEST_N and row["p_flip_adjusted"] >= ALPHA:
        fewest = row["p_flip"] < 2.01 / 2 ** row["n"]  # all differences have one sign
        why = ", which this n cannot in so many comparisons" if fewest else ""
        text += f"; the sign-flip test does not reach p < 0.05{why} ({p_in_words(row['p_flip_adjusted'])})"
    return text


def single(row):
    """The verdict on one seed, by the predictions that differ."""
    needed = f"{SMALLEST_N} seeds at least are needed to decide"
    if not row["discordant"]:
        return f"undecided ({points(row['mean'])} with one seed, whose predictions were not kept); {needed}"
    gained, lost = row["discordant"]
    numbers = (
        f"of {row['examples']} predictions {gained} are correct in the first alone, {lost} in the second alone, exact "
        f"McNemar {p_in_words(row['p_adjusted'])}"
    )
    if row["verdict"] == "undecided":
        effect = row["smallest_effect"]
        shown = "so few could have shown none"
        if effect is not None:
            shown = f"the smallest effect they could have shown is {points(effect, sign=False)}"
        return f"undecided ({points(row['mean'])} with one seed; {numbers}); {shown}, and {needed}"
    size = points(abs(row["mean"]), sign=False)
    return f"{row['verdict']} by {size} with this one seed ({numbers}); others may differ"


def headroom_in_words(rows):
    """What training the selected weights brings, a list of sentences: classical against frozen."""
    sentences = []
    for row in rows:
        text = f"Headroom, {row['arm']} minus {row['base']}: {points(row['mean'], sign=False)}"
        if row["interval"]:
            low, high = clipped(row["interval"])
            text += f" (95% interval {100 * low:+.1f} to {100 * high:+.1f}, n = {row['n']})"
        if round(row["mean"], 3) < SMALLEST_HEADROOM:
            text += f", less than {points(SMALLEST_HEADROOM, sign=False)}: a comparison of rules means little here"
        sentences.append(f"{text}.")
    unknown = "Headroom unknown: no seed has both a classical and a frozen run, so it is open what a comparison means."
    return sentences or [unknown]
