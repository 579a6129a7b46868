"""Large listings read by several threads: the same objects in the same order as one page after the other."""

import threading
import time
from itertools import islice

import pytest
from hypothesis import given, settings, strategies as st

import metricgold.storage.s3_listing as s3_listing
from metricgold.storage.buckets import open_bucket
from metricgold.storage.s3_listing import list_objects
from tests.support.s3 import s3_bucket, s3_client, s3_environment  # noqa: F401


class Listing:
    """list_objects_v2 over some keys, a few to a page; counts requests and how many are under way at once."""

    def __init__(self, keys: list[str], page_keys: int, page_s: float = 0.0) -> None:
        self.keys, self.page_keys, self.page_s = sorted(keys), page_keys, page_s
        self.num_requests = self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    def __call__(self, *, Prefix: str, Delimiter: str = "", StartAfter: str = "", ContinuationToken: str = "") -> dict:  # noqa: N803
        with self.lock:
            self.num_requests, self.at_once = self.num_requests + 1, self.at_once + 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(self.page_s)
        with self.lock:
            self.at_once -= 1
        names: dict[str, bool] = {}  # and whether it is a folder
        for key in self.keys:
            if key.startswith(Prefix) and key > StartAfter:
                head, slash, _ = key[len(Prefix) :].partition("/") if Delimiter else (key[len(Prefix) :], "", "")
                names[Prefix + head + slash] = bool(slash)
        found = [name for name in names if name > ContinuationToken]
        page = found[: self.page_keys]
        return {
            "Contents": [{"Key": name, "Size": 1, "ETag": f'"{name}"'} for name in page if not names[name]],
            "CommonPrefixes": [{"Prefix": name} for name in page if names[name]],
            "IsTruncated": len(found) > len(page),
            **({"NextContinuationToken": page[-1]} if len(found) > len(page) else {}),
        }


@pytest.fixture
def any_folder_is_large(monkeypatch):
    monkeypatch.setattr(s3_listing, "MIN_KEYS_OF_FOLDER", 0)


keys = st.lists(st.text("ab/-ä", min_size=1, max_size=6), unique=True)


@pytest.mark.usefixtures("any_folder_is_large")
@settings(max_examples=200, deadline=None)
@given(keys, st.sampled_from(["", "a", "a/"]), st.integers(1, 4), st.integers(1, 3), st.integers(1, 8))
def test_the_same_objects_in_the_same_order(keys, prefix, page_keys, pages_ahead, enough):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3_listing, "PAGES_AHEAD", pages_ahead)
        patch.setattr(s3_listing, "ENOUGH_FOLDERS", enough)
        patch.setattr(s3_listing, "MOST_PAGES_OF_FOLDERS", 2)
        found = [listed.key for listed in list_objects(Listing(keys, page_keys), prefix)]
    assert found == [key for key in sorted(keys) if key.startswith(prefix)]


DAYS = [f"2026/{month:02d}/{day:02d}/{n:02d}.jpg" for month in range(1, 7) for day in range(1, 11) for n in range(30)]


def test_folders_are_listed_beside_one_another_and_not_by_more_threads_than_allowed():
    request = Listing(DAYS, 25, page_s=0.002)
    assert [listed.key for listed in list_objects(request, "")] == DAYS
    assert 3 < request.most_at_once <= s3_listing.THREADS + 1
    assert request.num_requests < 2 * 60 + 20  # of two pages a day, to find the months and the days


def test_small_folders_and_a_small_listing_cost_no_request_more():
    small = [f"{n:03d}/{m}" for n in range(100) for m in range(3)]
    request = Listing(small, 10)
    assert len(list(list_objects(request, ""))) == 300 and request.num_requests == 30
    request = Listing(DAYS[:10], 10)
    assert len(list(list_objects(request, ""))) == 10 and request.num_requests == 1
    request = Listing(DAYS, 1000)
    assert len(list(list_objects(request, "", DAYS[0]))) == len(DAYS) - 1 and request.num_requests == 2


def test_a_listing_that_is_left_asks_for_no_more():
    request = Listing(DAYS, 25, page_s=0.001)
    listed = list_objects(request, "")
    assert len(list(islice(listed, 5))) == 5
    listed.close()
    asked = request.num_requests
    time.sleep(0.05)
    assert request.num_requests <= asked + s3_listing.THREADS < 100


def test_what_fails_in_a_thread_ends_the_listing():
    def fail(**options):
        if options["Prefix"] == "2026/03/05/":
            raise OSError("denied")
        return request(**options)

    request = Listing(DAYS, 25)
    with pytest.raises(OSError, match="denied"):
        list(list_objects(fail, ""))


@pytest.mark.usefixtures("any_folder_is_large")
def test_a_real_store(s3_bucket, monkeypatch):  # noqa: F811
    names = [f"in/{folder}{n}.jpg" for folder in ("", "a/", "a/b/", "a-/", "ä/", "b//c/") for n in range(4)]
    for name in [*names, "in/a/", "out.jpg"]:
        s3_client().put_object(Bucket=s3_bucket, Key=name, Body=b"" if name[-1] == "/" else name.encode())
    one_by_one = list(open_bucket(f"s3://{s3_bucket}/in").entries())
    bucket = open_bucket(f"s3://{s3_bucket}/in")
    asked, folders = bucket.client.list_objects_v2, []
    monkeypatch.setattr(
        bucket.client, "list_objects_v2", lambda **how: folders.append(how.get("Prefix")) or asked(**how, MaxKeys=5)
    )
    assert list(bucket.entries()) == one_by_one
    assert [f"in/{entry.key}" for entry in one_by_one] == sorted(names)
    assert {"in/a/", "in/ä/"} <= set(folders)
