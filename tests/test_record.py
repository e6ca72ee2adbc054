"""What a run writes while it trains: csv files that go on where the checkpoint was."""

import contextlib
import os
import shutil

import pytest

from harness.record import CsvFile, open_csv, open_record
from harness.run_folder import METRICS, seconds_of

COLUMNS = [*METRICS, seconds_of("w")]


def test_metrics_go_on_where_the_checkpoint_was(tmp_path):
    """What a killed run wrote after its checkpoint is cut off; numbers keep nine digits, None is an empty cell."""
    path = tmp_path / "metrics.csv"
    with open_csv(path, COLUMNS, 0) as metrics:
        metrics.write({"step": 1, "loss": 1 / 3, "cosine": None, "seconds_quantum w": 0.5})
        offset = metrics.offset
        assert offset == path.stat().st_size  # flushed
        metrics.write({"step": 2, "loss": 2.0})
    with open_csv(path, COLUMNS, offset) as metrics:
        metrics.write({"step": 2, "loss": 3.0})
        assert metrics.offset == path.stat().st_size
    header, *rows = path.read_text().splitlines()
    assert header.split(",") == COLUMNS
    assert rows[0].startswith("1,,0.333333333,,,,") and rows[0].endswith(",0.5")
    assert len(rows) == 2 and rows[1].startswith("2,,3,")
    with pytest.raises(ValueError, match="fields not in fieldnames"), open_csv(path, METRICS, 0) as metrics:
        metrics.write({"step": 1, "seconds_quantum w": 0.5})


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="writes to /dev/full")
def test_a_disk_that_is_full_names_the_file():
    file = open("/dev/full", "w")  # noqa: SIM115, its close fails too
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        CsvFile(file, ["step"]).write({"step": 1})
    with contextlib.suppress(OSError):
        file.close()


def test_a_folder_that_is_gone_ends_the_next_write(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with open_record(run, [], {}) as record:
        record.metrics.write({"step": 1})
        shutil.rmtree(run)
        with pytest.raises(FileNotFoundError, match=rf"^{run}: the run folder is gone, or its metrics.csv$"):
            record.metrics.write({"step": 2})
    assert not run.exists()


def test_a_record_goes_on_from_its_offsets_by_file(tmp_path):
    with open_record(tmp_path, ["w"], {}) as record:
        record.metrics.write({"step": 1})
        record.predictions.write({"step": 1, "example": 0, "label": 1, "margin": -0.5})
        offsets = record.offsets()
        record.predictions.write({"step": 2, "example": 0, "label": 1, "margin": 9.0})
    assert offsets["metrics.csv"] == (tmp_path / "metrics.csv").stat().st_size
    with open_record(tmp_path, ["w"], offsets) as record:
        assert record.offsets() == offsets
    assert (tmp_path / "predictions.csv").read_text().splitlines() == ["step,example,label,margin", "1,0,1,-0.5"]
