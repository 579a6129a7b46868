"""A training's state when params change: moved aside, taken back, never more than a few, whatever broke."""

import os

import pytest

from metricgold.storage.files import read_json
from metricgold.train.earlier_states import NUM_DIGITS, NUM_KEPT, claim_state

ONE, OTHER, THIRD, FOURTH = (letter * 64 for letter in "1234")


@pytest.fixture
def state(tmp_path):
    return tmp_path / "model.state"


def work(state, fingerprint, **options) -> str:
    """Claim the state and leave a checkpoint in it; the checkpoints that were there already."""
    claim_state(state, fingerprint, **options)
    present = " ".join(sorted(path.name for path in state.glob("step-*")))
    (state / f"step-{int(fingerprint[0]):06d}").mkdir(exist_ok=True)
    assert read_json(state / "fingerprint.json") == fingerprint
    return present


def kept(state) -> set[str]:
    folder = state.with_name("model.state.earlier")
    return {path.name[0] for path in folder.iterdir()} if folder.is_dir() else set()


def test_another_run_s_state_is_moved_aside_and_taken_back(state, caplog):
    caplog.set_level("INFO")
    assert work(state, ONE) == "" and work(state, ONE) == "step-000001" and kept(state) == set()
    assert work(state, OTHER) == "" and kept(state) == {"1"}
    assert f"a run with other params or data is moved to {state}.earlier/{ONE[:NUM_DIGITS]}" in caplog.text
    assert work(state, ONE) == "step-000001" and kept(state) == {"2"}
    assert f"{state}.earlier/{ONE[:NUM_DIGITS]} is taken back" in caplog.text


def test_the_last_two_others_are_kept(state, caplog):
    for age, fingerprint in enumerate((ONE, OTHER, THIRD, FOURTH)):
        work(state, fingerprint)
        for path in (state.parent / "model.state.earlier").glob("*"):
            os.utime(path, (age + int(path.name[0]),) * 2)  # a clock finer than the file system's
    assert NUM_KEPT == 2 and kept(state) == {"2", "3"} and f"{ONE[:NUM_DIGITS]} is deleted" in caplog.text


def test_starting_over_deletes_what_this_run_left_and_nothing_of_others(state):
    work(state, ONE)
    work(state, OTHER)
    assert work(state, OTHER, fresh=True) == "" and kept(state) == {"1"}
    assert work(state, ONE, fresh=True) == "" and kept(state) == {"2"}


def test_what_holds_no_checkpoint_pushes_nothing_out(state):
    work(state, ONE)
    claim_state(state, OTHER)
    claim_state(state, THIRD)
    assert kept(state) == {"1"}


@pytest.mark.parametrize("content", ["", "{", '"../../outside"', "[1]", None])
def test_a_broken_fingerprint_is_another_run_s(state, content):
    work(state, ONE)
    mark = state / "fingerprint.json"
    if content is None:
        mark.unlink()
    else:
        mark.write_text(content)
    assert work(state, ONE) == "" and kept(state) == {"u"}


def test_killed_between_the_moves_it_goes_on(state):
    work(state, ONE)
    work(state, OTHER)
    state.rename(state.with_name("model.state.earlier") / OTHER[:NUM_DIGITS])
    assert work(state, ONE) == "step-000001" and kept(state) == {"2"}


def test_a_folder_of_others_is_never_cleared(state):
    state.mkdir()
    (state / "notes.txt").write_text("theirs")
    with pytest.raises(FileExistsError, match=r"model\.state holds none of fingerprint\.json"):
        claim_state(state, ONE)
    (state / "notes.txt").unlink()
    earlier = state.with_name("model.state.earlier")
    (earlier / "theirs").mkdir(parents=True)
    for fingerprint in (ONE, OTHER, THIRD, FOURTH):
        work(state, fingerprint)
    assert (earlier / "theirs").is_dir() and len(kept(state)) == NUM_KEPT + 1
