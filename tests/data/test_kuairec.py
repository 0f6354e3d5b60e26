from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kuaisim_gym import load_dataset
from kuaisim_gym.errors import ConfigError, DataFormatError, DatasetNotFoundError, KuaiSimError

HEADER = "user_id,video_id,watch_ratio\n"
BIG = HEADER + "1,10,0.5\n1,11,2.0\n2,10,0.25\n2,99,1.0\n"
SMALL = "user_id,video_id,watch_ratio\n2,11,0.75\n2,12,1.5\n"


def folder(tmp_path: Path, big: str = BIG, small: str = SMALL) -> Path:
    (tmp_path / "big_matrix.csv").write_text(big)
    (tmp_path / "small_matrix.csv").write_text(small)
    return tmp_path


def test_a_golden_folder(tmp_path: Path) -> None:
    dataset = load_dataset("kuairec", folder(tmp_path))
    assert not dataset.synthetic
    assert dataset.user_ids.tolist() == [1, 2]
    # The catalogue is the small matrix's videos; those of the log alone come behind it.
    assert dataset.item_ids.tolist() == [11, 12, 10, 99]
    assert dataset.n_items == 2
    assert dataset.test_users.tolist() == [1]
    assert dataset.train_users.tolist() == [0]
    assert dataset.split_by == "user"
    assert dataset.log.items.tolist() == [2, 0, 2, 3]
    np.testing.assert_allclose(dataset.log.response, [0.5, 1.0, 0.25, 1.0])
    np.testing.assert_allclose(dataset.test.watch_ratio, [0.75, 1.5])


def test_columns_beyond_the_required_are_ignored_in_any_order(tmp_path: Path) -> None:
    big = "play_duration,watch_ratio,video_id,extra,user_id\n9,0.5,10,x,1\n9,0.25,10,y,2\n"
    assert len(load_dataset("kuairec", folder(tmp_path, big)).log) == 2


def test_the_real_sample(real) -> None:
    assert (len(real.log), len(real.test), len(real.test_users)) == (56_440, 46_563, 1_411)
    assert real.split_by == "cell"
    assert real.notes["big_matrix_duplicates"] == 0
    assert "real" in real.description


def test_duplicates_without_time_become_their_mean(tmp_path: Path, caplog) -> None:
    dataset = load_dataset("kuairec", folder(tmp_path, BIG + "1,10,1.5\n1,10,1.0\n"))
    row = (dataset.log.users == 0) & (dataset.log.items == 2)
    np.testing.assert_allclose(dataset.log.watch_ratio[row], [1.0])
    assert dataset.notes["big_matrix_duplicates"] == 2
    assert "2 duplicate" in caplog.text


def test_duplicates_with_time_keep_the_last(tmp_path: Path) -> None:
    big = "user_id,video_id,watch_ratio,timestamp\n1,10,0.9,30\n1,10,0.1,20\n1,11,0.5,5\n"
    dataset = load_dataset("kuairec", folder(tmp_path, big))
    np.testing.assert_allclose(np.sort(dataset.log.watch_ratio), [0.5, 0.9])


def test_test_cells_never_stay_in_the_log(tmp_path: Path) -> None:
    dataset = load_dataset("kuairec", folder(tmp_path, BIG + "2,11,0.9\n"))
    assert dataset.notes["log_rows_dropped_as_test_cells"] == 1
    log = set(zip(dataset.log.users.tolist(), dataset.log.items.tolist(), strict=True))
    test = set(zip(dataset.test.users.tolist(), dataset.test.items.tolist(), strict=True))
    assert not log & test


@pytest.mark.parametrize(
    ("big", "message"),
    [
        ("", "big_matrix.csv is empty"),
        ("user_id,video_id,watch_ratio\n", "no rows"),
        ("user_id,video,watch_ratio\n1,2,3\n", r"lacks the column\(s\) \['video_id'\]"),
        (BIG + "1,12,abc\n", r"data row 5, column 'watch_ratio'.*'abc'"),
        (BIG + "1,12,-0.5\n", r"data row 5, column 'watch_ratio'.*at least 0, got '-0.5'"),
        (BIG + "1,12,\n", r"data row 5, column 'watch_ratio'"),
        (BIG + "1,12,inf\n", r"data row 5, column 'watch_ratio'"),
        (BIG + "1,12,1e300\n", r"data row 5, column 'watch_ratio'"),
        (BIG + "1.5,12,1\n", r"data row 5, column 'user_id'.*a whole number, got '1.5'"),
        (BIG + "1,,1\n", r"data row 5, column 'video_id'"),
        (BIG + "x,12,1\n", r"data row 5, column 'user_id'.*'x'"),
        (BIG + "1,12,0.5,7,8\n", "line 6: expected 3 fields, as in the header, got 5"),
        (BIG + '"1",12,0.5,7\n', "line 6: expected 3 fields, as in the header, got 4"),
        ("user_id,video_id,watch_ratio,watch_ratio\n1,12,1,2\n", "repeats a column"),
        (SMALL, "Were the two files confused"),
    ],
)
def test_bad_tables_are_refused_by_file_line_and_value(
    tmp_path: Path, big: str, message: str
) -> None:
    with pytest.raises(DataFormatError, match=message):
        load_dataset("kuairec", folder(tmp_path, big))


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match="not there"):
        load_dataset("kuairec", tmp_path / "nowhere")
    (tmp_path / "big_matrix.csv").write_text(BIG)
    with pytest.raises(DatasetNotFoundError, match=r"small_matrix\.csv is missing"):
        load_dataset("kuairec", tmp_path)
    with pytest.raises(DatasetNotFoundError, match="a file"):
        load_dataset("kuairec", tmp_path / "big_matrix.csv")


def test_unknown_dataset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'kuairec'"):
        load_dataset("kuairek")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_mutated_files_load_or_are_refused(tmp_path: Path, data: st.DataObject) -> None:
    """Any edit of a cell gives an error of our own, or the value that was written."""
    rows = [["1", "10", "0.5"], ["1", "11", "2.0"], ["2", "10", "0.25"]]
    row, column = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))
    cell = data.draw(
        st.one_of(
            st.text(st.characters(codec="utf-8"), max_size=6),
            st.floats().map(repr),
            st.integers().map(str),
        )
    )
    rows[row][column] = cell
    text = HEADER + "".join(",".join(one) + "\n" for one in rows)
    (tmp_path / "big_matrix.csv").write_text(text, encoding="utf-8", newline="")
    (tmp_path / "small_matrix.csv").write_text(SMALL)
    try:
        dataset = load_dataset("kuairec", tmp_path)
    except KuaiSimError:
        return
    # What was loaded is what a plain reading of the cells gives.
    loaded = dict(
        zip(
            zip(
                dataset.user_ids[dataset.log.users].tolist(),
                dataset.item_ids[dataset.log.items].tolist(),
                strict=True,
            ),
            dataset.log.watch_ratio.tolist(),
            strict=True,
        )
    )
    for user, item, _ in rows:
        key = (int(float(user)), int(float(item)))
        same = [
            float(other[2]) for other in rows if (int(float(other[0])), int(float(other[1]))) == key
        ]
        assert loaded[key] == pytest.approx(np.mean(same), rel=1e-5)
