"""Run folders: made, written, and read, good and broken."""

import contextlib
import os
import shutil
import time

import pytest

from harness import run_folder


def test_the_most_recent_run_is_found_among_junk(tmp_path):
    for name in ("run_20260101_120000", "run_20260101_120000_2", "run_20260101_120000_10", "run_x_y", "reference"):
        (tmp_path / name).mkdir()
    (tmp_path / "run_20270101_000000").write_text("a file")
    assert run_folder.most_recent(tmp_path).name == "run_20260101_120000_10"
    with pytest.raises(ValueError, match=r"holds no run folder, `python train\.py` makes one"):
        run_folder.most_recent(tmp_path / "reference")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "[]", "config.json lacks accumulation_steps, aer_device, attention_layers"),
        ("environment.json", "null", "environment.json lacks data, model"),
        ("training_statistics.json", "{}", "training_statistics.json lacks selected_weights, status"),
        ("metrics.csv", "a,b\n1,2\n", "metrics.csv cannot be read: its columns are not those of a run"),
    ],
)
def test_odd_files_in_a_run_are_named(finished_run, tmp_path, name, content, message):
    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        run_folder.read(run)


def test_a_half_written_last_row_is_left_out(finished_run, tmp_path):
    text = (finished_run / "metrics.csv").read_text()
    (tmp_path / "metrics.csv").write_text(text + "7,3,0.5")
    assert len(run_folder.read_metrics(tmp_path / "metrics.csv")) == len(
        run_folder.read_metrics(finished_run / "metrics.csv")
    )


# --- Making and writing


def test_run_folders_never_collide(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder.time, "strftime", lambda pattern: "run_20260101_120000")
    folders = [run_folder.create(tmp_path / "new" / "results") for _ in range(3)]
    assert [folder.name for folder in folders] == [f"run_20260101_120000{end}" for end in ("", "_1", "_2")]
    assert run_folder.most_recent(tmp_path / "new" / "results") == folders[-1]


def test_names_are_the_second_of_now(tmp_path):
    before = time.strftime("run_%Y%m%d_%H%M%S")
    assert before <= run_folder.create(tmp_path).name <= time.strftime("run_%Y%m%d_%H%M%S")


def test_a_locked_folder_is_for_one(tmp_path):
    with (
        run_folder.locked(tmp_path),
        pytest.raises(ValueError, match="another process is training in it"),
        run_folder.locked(tmp_path),
    ):
        pass
    with run_folder.locked(tmp_path):  # and free again afterwards
        pass


def test_metrics_go_on_where_the_checkpoint_was(tmp_path):
    """What a killed run wrote after its checkpoint is cut off; numbers keep nine digits, None is an empty cell."""
    path = tmp_path / "metrics.csv"
    with run_folder.open_metrics(path, ["w"], 0) as metrics:
        metrics.write({"step": 1, "loss": 1 / 3, "cosine": None, "seconds_quantum w": 0.5})
        offset = metrics.offset
        assert offset == path.stat().st_size  # flushed
        metrics.write({"step": 2, "loss": 2.0})
    with run_folder.open_metrics(path, ["w"], offset) as metrics:
        metrics.write({"step": 2, "loss": 3.0})
        assert metrics.offset == path.stat().st_size
    header, *rows = path.read_text().splitlines()
    assert header.split(",") == [*run_folder.METRICS, "seconds_quantum w"]
    assert rows[0].startswith("1,,0.333333333,,,,") and rows[0].endswith(",0.5")
    assert len(rows) == 2 and rows[1].startswith("2,,3,")
    with pytest.raises(ValueError, match="fields not in fieldnames"), run_folder.open_metrics(path, [], 0) as metrics:
        metrics.write({"step": 1, "seconds_quantum w": 0.5})


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="writes to /dev/full")
def test_a_disk_that_is_full_names_the_file():
    file = open("/dev/full", "w")  # noqa: SIM115, its close fails too
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        run_folder.MetricsFile(file, ["step"]).write({"step": 1})
    with contextlib.suppress(OSError):
        file.close()
