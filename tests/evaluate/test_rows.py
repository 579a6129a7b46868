"""Rows of a benchmark: one file whatever the order, a journal that a kill cannot break, one line for what is no row."""

import numpy as np
import pytest

from metricgold.evaluate.rows import Journal, read_journal, read_rows_files, write_rows_file
from metricgold.storage import digest_json


def row(frame, method="ours", protocol="whole", **figures):
    digests = {"protocol_digest": digest_json(protocol), "ruler_digest": digest_json([protocol, "twin"])}
    names = {"benchmark": "twin", "protocol": protocol, "method": method, "method_digest": digest_json(method)}
    camera = {"focal_px": 500.0, "width": 64, "height": 48}
    return names | digests | {"frame": frame, "scene": frame[0], "reason": ""} | camera | figures


ROWS = [row("a/1", **{"metric/abs_rel": 0.1}), row("a/2", **{"metric/abs_rel": np.nan}), row("b/1", coverage50=0.5)]


def test_rows_come_back_as_columns_and_what_a_row_does_not_have_is_not_a_number(tmp_path):
    write_rows_file(tmp_path / "x.parquet", ROWS)
    rows = read_rows_files([tmp_path / "x.parquet"])
    assert rows["frame"].tolist() == ["a/1", "a/2", "b/1"]
    np.testing.assert_array_equal(rows["metric/abs_rel"], [0.1, np.nan, np.nan])
    np.testing.assert_array_equal(rows["coverage50"], [np.nan, np.nan, 0.5])
    assert rows.figures == ["coverage50", "metric/abs_rel"]
    assert rows.where(scene="a", method="ours")["width"].tolist() == [64.0, 64.0]
    assert rows.where(rows["metric/abs_rel"] > 0).unique("frame") == ["a/1"]
    assert len(rows.where(method="theirs")) == 0
    with pytest.raises(ValueError, match="no figure 'delta9'"):
        rows["delta9"]


def test_equal_rows_give_equal_bytes_whatever_their_order(tmp_path):
    write_rows_file(tmp_path / "x.parquet", ROWS)
    write_rows_file(tmp_path / "y.parquet", ROWS[::-1])
    assert (tmp_path / "x.parquet").read_bytes() == (tmp_path / "y.parquet").read_bytes()


def test_other_tools_read_the_file(tmp_path):
    pandas = pytest.importorskip("pandas")
    write_rows_file(tmp_path / "x.parquet", ROWS)
    frame = pandas.read_parquet(tmp_path / "x.parquet")
    assert frame.loc[frame.frame == "a/1", "metric/abs_rel"].item() == 0.1


def test_many_rows_and_a_figure_that_comes_late(tmp_path):
    many = [row(f"a/{i:04}", abs_rel=i / 7, **({"late": 1.0} if i > 150 else {})) for i in range(200)]
    write_rows_file(tmp_path / "x.parquet", many)
    rows = read_rows_files([tmp_path / "x.parquet"])
    np.testing.assert_array_equal(rows["abs_rel"], np.arange(200) / 7)
    assert np.isnan(rows["late"]).sum() == 151


def test_a_journal_cut_short_goes_on_after_its_last_whole_line(tmp_path):
    path = tmp_path / "x.jsonl"
    with Journal(path) as journal:
        journal.add(ROWS[:2])
    path.write_bytes(path.read_bytes() + b'{"frame": "b/')
    assert [one["frame"] for one in read_journal(path)] == ["a/1", "a/2"]
    with Journal(path) as journal:
        journal.add(ROWS[2:])
    write_rows_file(tmp_path / "whole.parquet", ROWS)
    write_rows_file(tmp_path / "cut.parquet", read_journal(path))
    assert (tmp_path / "whole.parquet").read_bytes() == (tmp_path / "cut.parquet").read_bytes()
    assert len(read_rows_files([path])) == 3


def test_several_files_are_read_as_one_and_a_row_in_both_once(tmp_path):
    write_rows_file(tmp_path / "x.parquet", ROWS)
    write_rows_file(tmp_path / "y.parquet", [row("a/1", "theirs", sparse=1.0)])
    rows = read_rows_files([tmp_path / "x.parquet", tmp_path / "y.parquet"])
    assert rows.unique("method") == ["ours", "theirs"] and np.isnan(rows["sparse"]).sum() == 3
    assert len(read_rows_files([tmp_path / "x.parquet", tmp_path / "x.parquet"])) == 3
    write_rows_file(tmp_path / "y.parquet", [row("a/1", **{"metric/abs_rel": 0.2})])
    with pytest.raises(ValueError, match="frame a/1 of ours has two rows"):
        read_rows_files([tmp_path / "x.parquet", tmp_path / "y.parquet"])


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PAR1nonsensePAR1"])
def test_what_is_no_parquet_is_named(tmp_path, content):
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.parquet is not a Parquet file"):
        read_rows_files([tmp_path / "x.parquet"])


def test_a_table_of_something_else_is_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    table = pa.table({"frame": ["a"]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"x\.parquet is not a file of rows"):
        read_rows_files([tmp_path / "x.parquet"])
    (tmp_path / "x.jsonl").write_text("[]\n")
    with pytest.raises(ValueError, match=r"x\.jsonl, line 1 is not a row"):
        read_rows_files([tmp_path / "x.jsonl"])


def test_a_file_of_rows_that_is_not_there_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"none\.parquet: no such file of rows"):
        read_rows_files([tmp_path / "none.parquet"])


def test_a_damaged_file_is_named_and_never_gives_other_figures(tmp_path):
    path = tmp_path / "x.parquet"
    write_rows_file(path, [row(f"a/{i}", **{"metric/abs_rel": i / 7}) for i in range(40)])
    whole, truth = path.read_bytes(), read_rows_files([path])["metric/abs_rel"]
    for at in range(4, len(whole), 97):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            found = read_rows_files([path])
        except ValueError as error:
            assert str(path) in str(error)
        else:
            np.testing.assert_array_equal(found["metric/abs_rel"], truth)
