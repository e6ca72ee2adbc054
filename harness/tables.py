"""Local data files as tables, each row with its line for messages. pandas is slow to import: read_table does it."""

import csv
import io
import itertools
import json

import config


def read_table(path):
    """Read one local file, by its ending: a pandas.DataFrame of Python objects, None where a cell is missing.

    Its index is what an editor shows as the first line of each row, and named by the path; see `place`. Of a parquet
    file it counts rows. Raises ValueError, in one line.
    """
    import pandas

    if path.suffix not in config.FILE_ENDINGS:
        raise ValueError(f"DATASET_NAME = {str(path)!r}: must end in one of {', '.join(config.FILE_ENDINGS)}")
    try:
        if path.suffix == ".parquet":
            rows = pandas.read_parquet(path, to_pandas_kwargs={"ignore_metadata": True}).astype(object)
            rows.index = range(1, len(rows) + 1)
        else:
            text = path.read_bytes().decode().removeprefix("\ufeff")
            array = path.suffix == ".json" and text.lstrip().startswith("[")
            if "json" in path.suffix:
                values = read_json_array(text) if array else read_json_lines(text)
            else:
                values = read_fields(text, path.suffix == ".tsv")
            rows = pandas.DataFrame(list(values.values()), index=list(values), dtype=object)
            rows = rows.rename_axis(None if array else "line", axis="columns")
    except UnicodeDecodeError as error:
        line, byte = error.object.count(b"\n", 0, error.start) + 1, error.object[error.start]
        raise ValueError(f"{path}: line {line} is not UTF-8 (byte {byte:#04x}): save it as UTF-8") from None
    except Exception as error:  # the readers raise many kinds; each means that the file cannot be read
        raise ValueError(f"{path}: cannot be read as {path.suffix[1:]}: {' '.join(str(error).split())}") from error
    if not len(rows):
        raise ValueError(f"{path}: holds no rows")
    return rows.where(rows.notna(), None).rename_axis(str(path))


def read_json_lines(text):
    """Parse text of one JSON object per line, skipping empty ones: {line: dict}; ValueError names the line.

    pandas.read_json would change types, and not name the bad line.
    """
    values = {}
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            values[line] = json.loads(content)
            if not isinstance(values[line], dict):
                raise ValueError("must be a JSON object")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {line}: {getattr(error, 'msg', error)}") from None
    return values


def read_json_array(text):
    """Parse text of one JSON array of objects: {place, from 1: dict}; ValueError names the place."""
    try:
        values = dict(enumerate(json.loads(text), 1))
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}: {error.msg}") from None
    for number, value in values.items():
        if not isinstance(value, dict):
            raise ValueError(f"row {number}: must be a JSON object")
    return values


def read_fields(text, tabs):
    """Parse text of a header and rows of fields: {line where the row begins: dict}, with None for a missing field.

    tabs: fields are parted by tabs, without quotes, as GLUE writes them; else by commas. ValueError names the line.
    """
    csv.field_size_limit(2**31 - 1)
    dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {}
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, **dialect)
    header, values, line = [], {}, 1
    try:
        for fields in reader:
            if not header:
                header = fields
                if len(set(header)) < len(header):
                    raise ValueError(f"the header names a column twice: {', '.join(header)}")
            elif len(fields) > len(header):
                raise ValueError(f"{len(fields)} fields, the header has {len(header)}")
            elif fields:
                values[line] = dict(itertools.zip_longest(header, fields))
            line = reader.line_num + 1  # a quoted field may go over several
    except (csv.Error, ValueError) as error:
        raise ValueError(f"line {line}: {error}") from None
    return values


def place(rows, index):
    """Where a row of a table stands, for messages: its file and the line, or row of what has no lines."""
    return f"{rows.index.name}, {rows.columns.name or 'row'} {index}"
