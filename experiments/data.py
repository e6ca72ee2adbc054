"""The data of the experiments, made from SST-2: word order (bigram shift: Conneau et al., 1805.01070) and sentiment."""

import csv
import random

SHORTEST = 7  # words of a sentence
TUNING = 1000  # sentences held out of the training split, for the choice of settings


def read_rows(path):
    """[(sentence, label)] of a GLUE file."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row["sentence"].strip(), row["label"]) for row in rows]


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
    whole = whole_sentences([sentence for sentence, _ in read_rows(sst2 / "train.tsv")])
    random.Random(0).shuffle(whole)
    development = swap_half([sentence for sentence, _ in read_rows(sst2 / "dev.tsv")], seed=2)
    write_splits(folder, swap_half(whole, seed=1), development)


def make_sentiment(sst2, folder):
    """The same for sentiment, whose training split is phrases; no phrase held out is part of one trained on."""
    rows = dict(read_rows(sst2 / "train.tsv"))
    whole = whole_sentences(rows)
    random.Random(0).shuffle(whole)
    write_splits(folder, [(sentence, rows[sentence]) for sentence in whole], read_rows(sst2 / "dev.tsv"))


def write_splits(folder, rows, development):
    for name, evaluation in (("tuning", rows[:TUNING]), ("final", development)):
        write_rows(folder / name / "train.tsv", rows[TUNING:])
        write_rows(folder / name / "validation.tsv", evaluation)
