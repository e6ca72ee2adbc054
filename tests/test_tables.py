"""Local data files: every format, good and bad."""

import json
import re

import pandas
import pyarrow
import pytest
from conftest import load_settings, write
from pyarrow import parquet

import model_utils
from harness import tables


def test_every_local_format_reads_alike(tmp_path):
    rows = [{"sentence": f'say "{word}" , now', "label": index % 2} for index, word in enumerate("abcdefgh")]
    from datasets import Dataset

    header = "sentence\tlabel\n"
    (tmp_path / "a.tsv").write_text(header + "".join(f"{r['sentence']}\t{r['label']}\n" for r in rows))
    quoted = ['"' + r["sentence"].replace('"', '""') + '"' for r in rows]
    lines = "".join(f"{q},{r['label']}\n" for q, r in zip(quoted, rows, strict=True))
    (tmp_path / "a.csv").write_text("\ufeffsentence,label\n" + lines, encoding="utf-8")
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(r) for r in rows) + "\n\n")
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=2))
    Dataset.from_list(rows).to_parquet(str(tmp_path / "a.parquet"))
    read = [
        model_utils.load_data(load_settings(tmp_path / f"a.{ending}", "--train_size", "0", "--eval_size", "0"))
        for ending in ("tsv", "csv", "jsonl", "json", "parquet")
    ]
    assert len(read[0].train) == 6 and len(read[0].evaluation) == 2
    assert all(data[:2] == read[0][:2] for data in read)
    assert {e.text for e in read[0].train + read[0].evaluation} == {r["sentence"] for r in rows}


BAD_FILES = [
    ("a.json", '[{"sentence": "x", "label": 1},\n 3]', "row 2: must be a JSON object"),
    ("a.json", "[\n{]", "line 2: Expecting property name"),
    (
        "a.json",
        '[{"sentence": "x", "label": 1}, {"sentence": "y", "label": 2}]',
        "row 2: label 2 must be a whole number",
    ),
    ("a.tsv", "", "a.tsv: holds no rows"),
    ("a.tsv", "sentence\tlabel\n", "a.tsv: holds no rows"),
    ("a.tsv", "text\tlabel\nx\t1\ny\t0\n", "has no column 'sentence', must be one of text, label"),
    ("a.tsv", "sentence\tgold\nx\t1\ny\t0\n", "has no column 'label', must be one of sentence, gold"),
    ("a.tsv", "sentence\tlabel\nx\t1\ny\t2\n", "line 3: label '2' must be a whole number from 0 to 1 (NUM_LABELS = 2)"),
    ("a.tsv", "sentence\tlabel\nx\t-1\ny\t1\n", "line 2: label '-1' must be a whole number from 0 to 1"),
    ("a.tsv", "sentence\tlabel\nx\tgood\ny\t1\n", "line 2: label 'good' must be a whole number from 0 to 1"),
    ("a.tsv", "sentence\tlabel\nx\ny\t1\n", "line 2: label None must be a whole number"),
    ("a.tsv", "label\tsentence\n1\n0\tx\n", "line 2: sentence = [None] must be text"),
    ("a.tsv", "sentence\tlabel\ncafé\t1\n".encode("latin-1"), "line 2 is not UTF-8 (byte 0xe9): save it as UTF-8"),
    (
        "a.jsonl",
        '{"sentence": "x", "label": 1.5}\n{"sentence": "y", "label": 1}',
        "line 1: label 1.5 must be a whole number",
    ),
    ("a.jsonl", '{"sentence": "x", "label": 1}\n{broken', "a.jsonl: cannot be read as jsonl: "),
    ("a.jsonl", '{"sentence": "x", "label": 1}\n{"sentence": "\\ud83d", "label": 0}', "line 2: sentence = ['\\ud83d']"),
    ("a.jsonl", '{"sentence": "x", "label": 1}\n{}\n', "line 2: label None must be a whole number"),
    ("a.jsonl", "[1, 2]\n", "a.jsonl: cannot be read as jsonl: line 1: must be a JSON object"),
    ("a.jsonl", '{"sentence": "x", "label": 1}\n{"sentence": "y"}', "line 2: label None must be a whole number"),
    (
        "a.jsonl",
        '{"sentence": "x", "label": 1}\n{"sentence": "y", "label": Infinity}',
        "line 2: label inf must be a whole number",
    ),
    ("a.jsonl", '{"sentence": "x", "label": 1}\n\n{broken', "jsonl: line 3: Expecting property name"),
    ("a.tsv", "sentence\tlabel\nx\t1\ny\t0\tz\n", "a.tsv: cannot be read as tsv: line 3: 3 fields, the header has 2"),
    ("a.tsv", "sentence\tlabel\nx\t1\tz\ny\t0\n", "a.tsv: cannot be read as tsv: line 2: 3 fields, the header has 2"),
    ("a.csv", "sentence,sentence,label\nx,y,1\n", "the header names a column twice: sentence, sentence, label"),
    ("a.csv", "sentence,label\nx,1\n", "a.csv: must hold at least two rows"),
    ("a.tsv", b"sentence\tlabel\n" + b"x\t1\n" * 50000 + b"\xe9\t1\n", "line 50002 is not UTF-8 (byte 0xe9): save it"),
    ("a.tsv", b"\xef\xbb\xbfsentence\tlabel\n\xe9\t1\n", "line 2 is not UTF-8 (byte 0xe9): save it as"),
    ("a.csv", 'sentence,label\n"x,1\ny,0\n', "a.csv: cannot be read as csv: line 2: unexpected end"),
    ("a.csv", "label,sentence\n1,x\n0\n", "line 3: sentence = [None] must be text"),
    ("a.jsonl", '{"sentence": "x", "label": true}\n{"sentence": 3, "label": 0}', "line 2: sentence = [3] must be text"),
    ("a.jsonl", "[" * 100000, "a.jsonl: cannot be read as jsonl: line 1: maximum recursion depth"),
    ("a.tsv", "\n\nsentence\tlabel\n\nx\t1\n\ny\t2\n", "line 7: label '2' must be"),
    ("a.csv", 'sentence,label\r\n"x\r\n\r\nz",1\r\ny,2\r\n', "line 5: label '2' must be"),
    ("a.csv", 'sentence,label\n"x\n\nz",2\ny,1\n', "line 2: label '2' must be"),
    ("a.csv", 'sentence,label\nx,1\n"y\n" z,0\n', "a.csv: cannot be read as csv: line 3: "),
    ("a.jsonl", '\n{"sentence": "x", "label": 1}\n\n{"sentence": "y", "label": 2}', "line 4: label 2 must be"),
    ("a.csv", "sentence,label\nx,1\n".encode("utf-16"), "line 1 is not UTF-8 (byte 0xff): save it as UTF-8"),
    ("a.parquet", "not parquet", "a.parquet: cannot be read as parquet: "),
    ("a.xls", "x", "must end in one of .tsv, .csv, .jsonl, .json, .parquet"),
]


@pytest.mark.parametrize(("name", "text", "message"), BAD_FILES)
def test_bad_files_get_one_clear_line(tmp_path, name, text, message):
    columns = [] if "text\t" in str(text) else ["--text_columns", "sentence"]
    settings = load_settings(write(tmp_path / name, text), "--train_size", "0", "--eval_size", "0", *columns)
    if not columns:
        settings = settings._replace(text_columns=("sentence",))
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        model_utils.load_data(settings)
    assert len(str(refused.value).splitlines()) == 1 and name in str(refused.value)


def test_json_lines_may_hold_any_unicode(tmp_path):
    rows = [{"sentence": "one\u2028two\u0085three", "label": 1}, {"sentence": "b", "label": 0}]
    path = tmp_path / "a.jsonl"
    path.write_text("\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8", newline="")
    assert tables.read_table(path).to_dict("records") == rows


def test_texts_and_labels_keep_their_values(tmp_path):
    """What a reader of tables may take for a date, a number or a missing value stays the text that it is."""
    texts = ["2020-01-01", "NA", "null", "nan", "None", "", "1e5", "007", "true", " x ", "1,5"]
    rows = [{"sentence": text, "label": 1} for text in texts]
    write(tmp_path / "a.tsv", "sentence\tlabel\n" + "".join(f"{text}\t1\n" for text in texts))
    write(tmp_path / "a.csv", "\ufeffsentence,label\r\n" + "".join(f'"{text}",1\r\n' for text in texts))
    write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    pandas.DataFrame(rows, index=range(7, 18)).to_parquet(tmp_path / "a.parquet")
    for ending in ("tsv", "csv", "jsonl", "parquet"):
        table = tables.read_table(tmp_path / f"a.{ending}")
        assert table["sentence"].tolist() == texts and {int(label) for label in table["label"]} == {1}
        first = {"jsonl": 1, "parquet": 1}.get(ending, 2)  # line, or row of a file without lines
        assert table.index.tolist() == list(range(first, first + len(texts)))
        assert table.index.name == str(tmp_path / f"a.{ending}")
    labels = [1.5, 1, True, None, "1", [1]]
    write(tmp_path / "b.json", "\n".join(json.dumps({"label": label}) for label in labels))
    read = tables.read_table(tmp_path / "b.json")["label"].tolist()
    assert read == labels and list(map(type, read)) == list(map(type, labels))


def test_parquet_files_that_do_not_fit_get_one_line(tmp_path):
    path = tmp_path / "a.parquet"
    for names, labels, message in (
        (["sentence", "label", "label"], [1, 0], "cannot be read as parquet: "),
        (["sentence", "label", "other"], [1, None], "row 2: label None must be a whole number"),
        (["sentence", "label", "other"], [1, 2], "row 2: label 2 must be a whole number"),
    ):
        parquet.write_table(pyarrow.table([["x", "y"], labels, [0, 0]], names=names), path)
        with pytest.raises(ValueError, match=message) as refused:
            model_utils.load_data(load_settings(path, "--train_size", "0", "--eval_size", "0"))
        assert str(path) in str(refused.value) and len(str(refused.value).splitlines()) == 1
