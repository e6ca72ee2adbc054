"""Run folders: made, written, and read, good and broken."""

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
        (
            "environment.json",
            '{"data": {}, "model": {"kind": "hub"}}',
            "environment.json does not say what model",
        ),
        (
            "environment.json",
            '{"data": {"kind": "hub", "evaluation_examples": 9}, "model": {"kind": "local"}}',
            "environment.json does not say what model",
        ),
        ("metrics.csv", "a,b\n1,2\n", "metrics.csv cannot be read: its columns are not those of a run"),
        ("metrics.csv", "", "metrics.csv has not the evaluations of training_statistics.json"),
        ("metrics.csv", ",".join(run_folder.METRICS) + "\n" + "1," * 99 + "\n", "metrics.csv cannot be read"),
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


def test_predictions_are_those_of_the_metrics(finished_run):
    predictions = run_folder.read_predictions(finished_run / "predictions.csv")
    rows = [row for row in run_folder.read(finished_run)["rows"] if row["eval_accuracy"] is not None]
    assert list(predictions) == [row["step"] for row in rows] == [0, 3, 6]
    for row, (labels, margins) in zip(rows, predictions.values(), strict=True):
        assert labels.shape == margins.shape == (10,) and set(labels) == {0, 1}
        assert (margins > 0).mean() == row["eval_accuracy"]


def test_a_half_written_evaluation_is_left_out_and_none_is_needed(tmp_path):
    path = tmp_path / "predictions.csv"
    assert run_folder.read_predictions(path) == {}
    header, one, two = "step,example,label,margin\n", "0,0,1,0.5\n0,1,0,-2e-3\n", "4,0,1,1\n4,1,0,0."
    path.write_text(header)
    assert run_folder.read_predictions(path) == {}
    path.write_text(header + one + two)
    ((labels, margins),) = run_folder.read_predictions(path).values()
    assert (labels.tolist(), margins.tolist()) == ([1, 0], [0.5, -0.002])
    path.write_text(header + one + two + "5\n")
    assert list(run_folder.read_predictions(path)) == [0, 4]
    for broken in ("a,b\n1,2\n", header + "0,0,x,1\n", header + "0,0,1\n"):
        path.write_text(broken)
        with pytest.raises(ValueError, match=r"predictions\.csv cannot be read"):
            run_folder.read_predictions(path)


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


def test_latest_passes_over_a_run_that_another_process_trains(tmp_path):
    older, newer = tmp_path / "run_20260101_000000", tmp_path / "run_20260101_000001"
    for folder in (older, newer):
        (folder / "checkpoint" / "step_3").mkdir(parents=True)
    assert run_folder.most_recent(tmp_path, unfinished=True) == newer
    with run_folder.locked(newer):
        assert run_folder.most_recent(tmp_path, unfinished=True) == older
        with run_folder.locked(older):  # nothing is free: the message says so about the latest
            assert run_folder.most_recent(tmp_path, unfinished=True) == newer
