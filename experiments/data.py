"""The data of the experiments, made from SST-2: word order (bigram shift: Conneau et al., 1805.01070) and sentiment."""

import csv
import random

SHORTEST, LONGEST = 7, 20  # words of a sentence of which two may be swapped
TUNING = 1000  # sentences held out of the training split, for the choice of settings
HELD_OUT = 400  # others held out of it, which make word order's final evaluation larger


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
    sentences = [sentence for sentence in sentences if SHORTEST <= len(sentence.split()) <= LONGEST]
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

    Both train on the same sentences of 7 to 20 words; `tuning` is evaluated on 1,000 others of the training split,
    `final` on the development split and 400 more of the training split.
    """
    whole = whole_sentences([sentence for sentence, _ in read_rows(sst2 / "train.tsv")])
    random.Random(0).shuffle(whole)
    rows = swap_half(whole, seed=1)
    development = swap_half([sentence for sentence, _ in read_rows(sst2 / "dev.tsv")], seed=2)
    evaluations = {"tuning": rows[:TUNING], "final": development + rows[TUNING : TUNING + HELD_OUT]}
    write_splits(folder, rows[TUNING + HELD_OUT :], evaluations)


def make_sentiment(sst2, folder):
    """The same for sentiment, of any length; the training split is of phrases, none held out is part of one trained on.

    `final` is evaluated on the development split.
    """
    labels = dict(read_rows(sst2 / "train.tsv"))
    whole = whole_sentences(labels)
    random.Random(0).shuffle(whole)
    rows = [(sentence, labels[sentence]) for sentence in whole]
    write_splits(folder, rows[TUNING:], {"tuning": rows[:TUNING], "final": read_rows(sst2 / "dev.tsv")})


def write_splits(folder, training, evaluations):
    for name, evaluation in evaluations.items():
        write_rows(folder / name / "train.tsv", training)
        write_rows(folder / name / "validation.tsv", evaluation)
