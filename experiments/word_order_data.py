"""Make the word-order data: are two adjacent words swapped? (bigram shift: Conneau et al., 1805.01070)."""

import csv
import random

SHORTEST = 7  # words of a sentence
TUNING = 1000  # sentences held out of the training split, for the choice of settings


def read_sentences(path):
    """The sentences of a GLUE file, a list of str."""
    with open(path, encoding="utf-8", newline="") as file:
        return [row["sentence"].strip() for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]


def whole_sentences(phrases):
    """The phrases of SST-2 that are no part of a longer one, longest first."""
    kept, seen = [], ""
    for phrase in sorted(set(phrases), key=lambda phrase: (-len(phrase), phrase)):
        if f" {phrase} " not in seen:
            kept.append(phrase)
            seen += f"\n {phrase} "
    return kept


def swap_half(sentences, seed):
    """[(sentence, label)]: half of them, drawn at random, with two adjacent, different words swapped and label 1."""
    draw = random.Random(seed)
    sentences = [sentence for sentence in sentences if len(sentence.split()) >= SHORTEST]
    swapped = set(draw.sample(range(len(sentences)), len(sentences) // 2))
    rows = []
    for index, sentence in enumerate(sentences):
        words = sentence.split()
        if index in swapped:
            place = draw.choice([i for i in range(len(words) - 1) if words[i] != words[i + 1]])
            words[place : place + 2] = words[place + 1], words[place]
        rows.append((" ".join(words), int(index in swapped)))
    return rows


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["sentence\tlabel", *(f"{sentence}\t{label}" for sentence, label in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_word_order(sst2, folder):
    """Write FOLDER/tuning and FOLDER/final, each with train.tsv and validation.tsv, from SST-2's folder of GLUE files.

    Both train on the same sentences; `tuning` is evaluated on TUNING others of the training split, `final` on the
    development split.
    """
    whole = whole_sentences(read_sentences(sst2 / "train.tsv"))
    random.Random(0).shuffle(whole)
    rows = swap_half(whole, seed=1)
    development = swap_half(read_sentences(sst2 / "dev.tsv"), seed=2)
    for name, evaluation in (("tuning", rows[:TUNING]), ("final", development)):
        write_rows(folder / name / "train.tsv", rows[TUNING:])
        write_rows(folder / name / "validation.tsv", evaluation)
