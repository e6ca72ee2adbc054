"""What a run writes while it trains: metrics.csv, a row for each step and evaluation, and predictions.csv."""

import contextlib
import csv
import os
from pathlib import Path
from typing import NamedTuple

from harness.process_group import rank
from harness.run_folder import METRICS, PREDICTIONS, seconds_of

FILES = ("metrics.csv", "predictions.csv")


class CsvFile:
    """A csv file of a run while it is written."""

    def __init__(self, file, columns):
        self.file, self.writer = file, csv.DictWriter(file, columns)

    def write(self, *rows):
        """Write rows, dicts by column, on their way to the disk before the next step begins."""
        for row in rows:
            self.writer.writerow({name: f"{v:.9g}" if isinstance(v, float) else v for name, v in row.items()})
        try:
            self.file.flush()
        except OSError as error:  # a full disk does not say which file
            raise OSError(error.errno, error.strerror, self.file.name) from None
        path = Path(self.file.name)
        if not path.exists():  # the system goes on writing to what has been deleted
            raise FileNotFoundError(f"{path.parent}: the run folder is gone, or its {path.name}")

    @property
    def offset(self):
        """Bytes written so far, what killed runs wrote after their checkpoint not counted."""
        return self.file.tell()


@contextlib.contextmanager
def open_csv(path, columns, offset):
    """Yield the CsvFile at `path` from byte `offset` on; what a killed run wrote after that is cut off."""
    if offset and path != Path(os.devnull):
        os.truncate(path, offset)
    with open(path, "a" if offset else "w", newline="", encoding="utf-8") as file:
        opened = CsvFile(file, columns)
        if not offset:
            opened.writer.writeheader()
        yield opened


class Record(NamedTuple):
    """What a run writes while it trains."""

    metrics: CsvFile
    predictions: CsvFile

    def offsets(self):
        """Bytes written so far, by file name."""
        return dict(zip(FILES, (file.offset for file in self), strict=True))


@contextlib.contextmanager
def open_record(run, measured, offsets):
    """Yield the Record of a run on rank 0, of nothing on the others. measured: names of the weights whose circuits are
    timed, a column each. offsets: bytes by file name from which to go on, {} to begin."""
    metrics, predictions = (run / name if rank() == 0 else Path(os.devnull) for name in FILES)
    columns = METRICS + [seconds_of(name) for name in measured]
    with (
        open_csv(metrics, columns, offsets.get(FILES[0], 0)) as first,
        open_csv(predictions, PREDICTIONS, offsets.get(FILES[1], 0)) as second,
    ):
        yield Record(first, second)
