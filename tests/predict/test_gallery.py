"""The page of a batch job: its thumbnails, which images it shows, and what a real browser makes of it."""

import hashlib
import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image

from metricgold.images.depth_files import read_log_depth_png, write_log_depth_png
from metricgold.log_depth import LogDepth
from metricgold.predict.gallery import (
    GALLERY,
    MAX_TROUBLES,
    GallerySample,
    Thumbnail,
    make_thumbnail,
    middles,
    render_gallery,
)
from tests.support.browser import NAMES, Browser, find_browser
from tests.support.workers import sent

SURROGATES = st.text(st.characters(), max_size=30)
THUMBNAIL = Thumbnail(1, 1, b"photograph", b"depth", (1.0, 2.0), 1, 1, 1.0, 1.0, b"\1\0")


def noise(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The hardest thing to compress: rgb and depth without any order."""
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return rgb, np.exp(rng.uniform(-1, 4, (height, width))).astype(np.float32)


def done_row(name: str, depth_m: np.ndarray, **more: Any) -> dict[str, Any]:
    known = depth_m[np.isfinite(depth_m) & (depth_m > 0)]
    low_m, median_m, high_m = np.quantile(known, [0, 0.5, 1]).tolist() if known.size else [None] * 3
    kinds = {"uncertainty": ".uncertainty.png", "log-png": ".depth.png", "preview": ".preview.jpg"}
    return {
        "input": name,
        "status": "done",
        "output": f"{name}.depth.png",
        "outputs": {kind: {"key": name + suffix, "tag": "1"} for kind, suffix in kinds.items()},
        **{"min_m": low_m, "median_m": median_m, "max_m": high_m, "uncertainty_median": 0.031, "num_members": 4},
        **more,
    }


def summary(done: int, failed: int = 0, skipped: int = 0, **more: Any) -> dict[str, Any]:
    counts = {"images_done": done, "images_kept": 0, "images_failed": failed, "images_skipped": skipped}
    return {**counts, "seconds": 12.5, "input": "in", "output": "out", "model": "metricgold"} | more


def metres_of(thumbnail: Thumbnail) -> np.ndarray:
    """Depth of a thumbnail's grid, as its docstring says; NaN where there is none."""
    code = np.frombuffer(thumbnail.codes, "<u2").reshape(thumbnail.num_rows, thumbnail.num_columns)
    ratio = thumbnail.far_m / thumbnail.near_m
    return np.where(code == 0, np.nan, thumbnail.near_m * ratio ** ((code - 1.0) / 65534))


# --- thumbnails ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (48, 64), (49, 64), (480, 640), (720, 1280), (900, 113), (7, 5_000)])
def test_a_thumbnail_holds_the_depth_of_the_pixels_in_the_middle_of_its_cells(size):
    rgb, depth_m = noise(*size)
    depth_m.flat[::7] = np.nan
    depth_m.flat[1::11] = 0
    depth_m.flat[2::13] = np.inf
    thumbnail = make_thumbnail(rgb, depth_m)
    there = depth_m[middles(size[0], thumbnail.num_rows)[:, None], middles(size[1], thumbnail.num_columns)]
    there = np.where(np.isfinite(there) & (there > 0), there, np.nan)
    step = np.log(thumbnail.far_m / thumbnail.near_m) / 65534
    np.testing.assert_allclose(metres_of(thumbnail), there, rtol=0.51 * step + 1e-6)
    assert (thumbnail.height, thumbnail.width) == size
    num_cells = thumbnail.num_rows * thumbnail.num_columns
    assert num_cells <= 64 * 48
    assert min(thumbnail.num_rows / size[0], thumbnail.num_columns / size[1]) == 1 or num_cells > 1_000


@given(st.integers(1, 500), st.integers(1, 500))
def test_middles_lie_in_the_middle_of_equal_parts(length, num):
    num = min(num, length)
    found = middles(length, num)
    exact = (np.arange(num) + 0.5) * length / num
    assert np.all((found <= exact) & (exact < found + 1 + 1e-9)) and len(set(found)) == num


@pytest.mark.parametrize("value", [np.nan, 0.0, -1.0, np.inf, 3.5])
def test_a_thumbnail_of_one_depth_or_none(value):
    thumbnail = make_thumbnail(np.zeros((30, 40, 3), np.uint8), np.full((30, 40), value, np.float32))
    np.testing.assert_array_equal(metres_of(thumbnail), value if value == 3.5 else np.nan)
    assert thumbnail.range_m[1] > thumbnail.range_m[0] > 0


def test_the_pictures_of_a_thumbnail_are_small_and_of_the_image_s_shape():
    rgb, depth_m = noise(600, 800)
    thumbnail = make_thumbnail(rgb, depth_m)
    for picture in (thumbnail.photograph, thumbnail.depth):
        with Image.open(io.BytesIO(picture)) as image:
            assert (image.format, image.size) == ("JPEG", (320, 240))
    assert len(thumbnail.photograph) + len(thumbnail.depth) <= 13_000
    assert sent(thumbnail) == thumbnail == make_thumbnail(rgb, depth_m)


def test_the_photograph_of_a_thumbnail_is_the_photograph():
    rows, columns = np.mgrid[:480, :640]
    rgb = np.stack([rows / 2, columns / 3, 255 - rows / 2], axis=-1).astype(np.uint8)
    thumbnail = make_thumbnail(rgb, np.ones((480, 640), np.float32))
    with Image.open(io.BytesIO(thumbnail.photograph)) as image:
        np.testing.assert_allclose(np.asarray(image, float), rgb[::2, ::2], atol=12)


def test_a_thumbnail_needs_depth_of_the_photograph_s_size():
    with pytest.raises(ValueError, match=r"20x30, got \[30, 20, 3\]"):
        make_thumbnail(np.zeros((30, 20, 3), np.uint8), np.ones((20, 30), np.float32))


# --- which images -------------------------------------------------------------------------------------------


def smallest(keys: set[str], limit: int) -> list[str]:
    by_hash = sorted(keys, key=lambda key: hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest())
    return sorted(by_hash[:limit])


@given(st.lists(SURROGATES, max_size=40), st.integers(0, 12), st.booleans())
def test_a_sample_is_the_same_in_whatever_order_images_are_finished(keys, limit, ask):
    """Keys in any order, some of them twice, kept only when wanted or regardless."""
    sample = GallerySample(limit)
    for key in keys:
        if not ask or sample.wants(key):
            sample.keep(key, THUMBNAIL)
    assert list(sample.thumbnails) == smallest(set(keys), limit)
    assert {key for key in keys if sample.wants(key)} == set(sample.thumbnails)


def test_a_sample_of_many_threads():
    keys = [f"{number}.jpg" for number in range(5_000)]
    sample = GallerySample(50)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: sample.wants(key) and sample.keep(key, THUMBNAIL), keys * 2))
    assert list(sample.thumbnails) == smallest(set(keys), 50)


def test_the_last_thumbnail_of_a_key_is_the_one():
    sample = GallerySample(2)
    sample.keep("a", THUMBNAIL)
    again = make_thumbnail(np.zeros((1, 1, 3), np.uint8), np.ones((1, 1), np.float32))
    sample.keep("a", again)
    assert sample.thumbnails == {"a": again}


# --- the page -----------------------------------------------------------------------------------------------


class Elements(HTMLParser):
    """Every element with its attributes, and the page's text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""  # without scripts and styles
        self._silent = False
        self.feed(page)

    def handle_starttag(self, tag, attrs) -> None:
        self.found.append((tag, dict(attrs)))
        self._silent = tag in ("script", "style")

    def handle_data(self, data) -> None:
        self.text += "" if self._silent else data

    def links(self) -> list[str]:
        return [attributes["href"] for tag, attributes in self.found if tag == "a"]


HOSTILE = [
    "<script>window.hacked = 1</script>.jpg",
    "</script><img src=x onerror='window.hacked = 1'>.jpg",
    '"><svg onload="window.hacked = 1">.jpg',
    "' onmouseover='window.hacked = 1' x='.jpg",
    "{{ 7 * 7 }}{% raw %}.jpg",
    "javascript:window.hacked = 1",
    "a\nline\rbreak\t.jpg",
    "gnp.\u202egpj.exe",
    "mountain \U0001f3d4\ufe0f and family \U0001f468\u200d\U0001f469\u200d\U0001f467.jpg",
    "bytes that are no text \udcff\udce9.jpg",
    "#part?query=%20&amp;.jpg",
    "album/of 2026/\xe9t\xe9 100%.jpg",
    "x" * 1_020 + ".jpg",
]


NAMES_GIVEN = SURROGATES | st.sampled_from(HOSTILE) | st.text("<>\"'&/=a ", max_size=20)


@given(NAMES_GIVEN, NAMES_GIVEN, NAMES_GIVEN)
def test_names_do_nothing_but_name(name, trouble, reason):
    row = done_row(name, np.ones((1, 1)))
    bad = {"input": trouble, "status": "failed", "reason": reason}
    page = Elements(render_gallery(summary(1, 1, model=reason, input=name), {name: THUMBNAIL}, {name: row}, [bad]))
    bad = {"input": "b", "status": "failed", "reason": "c"}
    plain = Elements(render_gallery(summary(1, 1), {"a": THUMBNAIL}, {"a": done_row("a", np.ones((1, 1)))}, [bad]))

    def harmless(elements: Elements) -> list[tuple[str, list[str]]]:
        return [(tag, sorted(attrs)) for tag, attrs in elements.found if tag != "a"]

    assert harmless(page) == harmless(plain)
    assert all(link.startswith("./") and link.isascii() for link in page.links())
    page.text.encode()


@pytest.mark.parametrize("name", HOSTILE)
def test_links_lead_to_the_files(name):
    elements = Elements(render_gallery(summary(1), {name: THUMBNAIL}, {name: done_row(name, np.ones((1, 1)))}, []))
    keys = [os.fsdecode(unquote_to_bytes(urlsplit(f"file:///{link}").path[3:])) for link in elements.links()]
    assert keys == [name + suffix for suffix in (".depth.png", ".uncertainty.png", ".preview.jpg")]
    assert "log-pnguncertaintypreview" in elements.text  # each link says what it leads to


@pytest.mark.parametrize("name", ["../a.jpg", "a/./b.jpg", "lone \ud800.jpg"])
def test_what_no_url_can_name_has_no_link(name):
    row = done_row(name, np.ones((1, 1)))
    assert not Elements(render_gallery(summary(1), {name: THUMBNAIL}, {name: row}, [])).links()


def test_troubles_are_bounded():
    rows = [{"input": f"{n}.jpg", "status": "failed", "reason": "broken " * 1_000} for n in range(600)]
    rows += [{"input": f"{n}.txt", "status": "skipped", "reason": f"{n}.txt: no image"} for n in range(5_000)]
    reasons = {"timed out": 3, "<b>broken": 1_200}
    page = render_gallery(summary(0, 600, 5_000, reasons=reasons), {}, {}, iter(rows))
    found = Elements(page)
    statuses = [attributes["data-status"] for tag, attributes in found.found if "data-status" in attributes]
    assert statuses == ["failed"] * 600 + ["skipped"] * (MAX_TROUBLES - 600)
    assert "The first 1,000; 4,600 more stand in receipt.jsonl." in found.text
    assert "Why images failed: 1,200 \xd7 <b>broken; 3 \xd7 timed out." in found.text
    assert "0.txt: no image" not in found.text and len(page) < 1_500_000


def test_a_page_of_200_thumbnails_stays_below_5_mb():
    thumbnail = make_thumbnail(*noise(240, 320))
    thumbnails = {f"folder/{number:04d}.jpg": thumbnail for number in range(200)}
    done = {name: done_row(name, np.ones((1, 1))) for name in thumbnails}
    asked = {"num_inference_steps": 50, "ensemble_size": "auto", "seed": 0}
    page = render_gallery(summary(5_000, params=asked), thumbnails, done, [])
    assert "50 steps \xd7 as many members as needed, seed 0" in page
    assert len(page.encode()) < 5_000_000
    assert "200 of 5,000 images" in page and "more stand" not in page


def test_an_image_without_figures_or_row():
    """Depth nowhere, one member, a row of an earlier version; and a thumbnail whose image failed later on."""
    row = done_row("a", np.full((1, 1), np.nan), uncertainty_median=None)
    del row["num_members"], row["outputs"]
    elements = Elements(render_gallery(summary(1, seconds=0.0), {"a": THUMBNAIL, "b": THUMBNAIL}, {"a": row}, []))
    assert elements.links() == ["./a.depth.png"]
    assert "steps" not in elements.text and elements.text.count("unknown") == 2 and elements.text.count("none") == 3


# --- in a browser -------------------------------------------------------------------------------------------

needs_browser = pytest.mark.skipif(
    find_browser() is None, reason=f"none of {', '.join(NAMES)} on PATH: nobody has seen the page"
)
TROUBLES = [
    {"input": "broken<b>.jpg", "status": "failed", "reason": "broken<b>.jpg: empty file"},
    {"input": "notes.txt", "status": "skipped", "reason": "notes.txt: not an image"},
    {"input": "more notes.txt", "status": "skipped", "reason": "more notes.txt: not an image"},
]
RANGE = LogDepth(0.5, 80.0)


def scene(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Ground with a ball on it, and a strip at the left where nothing is known."""
    rows, columns = np.mgrid[:height, :width]
    depth_m = 1.2 * height / np.maximum(rows - 0.4 * height, 0.02 * height)
    off = np.hypot(rows - 0.55 * height, columns - 0.6 * width) / (0.2 * height)
    depth_m = np.where(off < 1, 2 - 0.3 * np.sqrt(np.maximum(0, 1 - off**2)), depth_m)
    rgb = np.stack([40 + 180 * (off < 1), 200 - 120 * rows / height, 230 - 200 * rows / height], axis=-1)
    depth_m[:, : width // 8] = np.nan
    return rgb.clip(0, 255).astype(np.uint8), depth_m.astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The output of a job: depth files under hostile names, and the page."""
    folder = tmp_path_factory.mktemp("gallery")
    sizes = [(480, 640), (300, 200), (32, 48), (90, 400)]
    thumbnails, done = {}, {}
    for number, name in enumerate(name for name in HOSTILE if len(name) < 200):
        rgb, depth_m = scene(*sizes[number % 4])
        row = done_row(name, depth_m)
        target = folder / row["output"]
        target.parent.mkdir(parents=True, exist_ok=True)
        write_log_depth_png(target, depth_m, RANGE, {})
        for file in row["outputs"].values():
            (folder / file["key"]).touch()
        thumbnails[name], done[name] = make_thumbnail(rgb, depth_m), row
    long = HOSTILE[-1]  # too long for a file's name, not for a key of S3
    thumbnails[long], done[long] = thumbnails[HOSTILE[0]], done_row(long, np.ones((1, 1)))
    page = render_gallery(summary(len(thumbnails), 1, 2, output="/" + "o" * 300), thumbnails, done, TROUBLES)
    (folder / GALLERY).write_text(page)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser(find_browser()) as browser:
        yield browser


def card_number(name: str) -> int:
    return sorted(HOSTILE).index(name)


def place(browser: Browser, name: str, side: int) -> list[float]:
    """Left, top, width, height in the window of one of an image's pictures, scrolled to the middle."""
    frame = f"document.querySelectorAll('.card')[{card_number(name)}].querySelectorAll('.frame')[{side}]"
    browser.run(f"{frame}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
    return browser.run(f"(b => [b.x, b.y, b.width, b.height])({frame}.getBoundingClientRect())")


def told(browser: Browser) -> tuple[str, int, int] | None:
    """Metres, x and y of the label, where it is seen."""
    seen, depth, where = browser.run(
        "(l => [l.getClientRects().length, l.children[0].innerText, l.children[1].innerText])"
        "(document.querySelector('#label'))"
    )
    x, y = where.replace("x ", "").split(", y ") if seen else (0, 0)
    return (depth, int(x), int(y)) if seen else None


def assert_is_depth(depth: str, depth_m: float) -> None:
    """The label's three digits are those of the depth file, within half a digit and the grid's step."""
    if np.isnan(depth_m):
        assert depth == "no depth"
        return
    figures = depth.removesuffix(" m")
    half_digit = 0.5 * 10.0 ** -len(figures.partition(".")[2])
    assert abs(float(figures) - depth_m) <= half_digit + depth_m * 3e-4


@needs_browser
@pytest.mark.parametrize("width", [1200, 360])
def test_pointing_at_a_picture_tells_its_depth(browser, folder, width):
    browser.open((folder / GALLERY).as_uri(), width=width)
    for name in (*HOSTILE[:4], HOSTILE[11]):
        depth_m, _ = read_log_depth_png(folder / f"{name}.depth.png")
        height_px, width_px = depth_m.shape
        for side, u, v in ((0, 0.31, 0.72), (1, 0.62, 0.52), (1, 0.99, 0.01), (0, 0.03, 0.5)):
            left, top, wide, high = place(browser, name, side)
            browser.move(left + u * wide, top + v * high)
            depth, x, y = told(browser)
            assert abs(x - u * width_px) <= max(1, width_px / 25) and abs(y - v * height_px) <= max(1, height_px / 25)
            assert_is_depth(depth, depth_m[y, x])
            inside = (
                "(b => b.left >= 0 && b.right <= innerWidth)(document.querySelector('#label').getBoundingClientRect())"
            )
            assert browser.run(inside)
            assert browser.run("document.querySelectorAll('.frame .mark').length") == 2
    browser.move(1, 1)
    assert told(browser) is None
    browser.move(left + wide / 2, top + high / 2)
    assert told(browser)
    browser.move(-9, -9)
    assert told(browser) is None
    assert not browser.complaints


@needs_browser
def test_the_page_is_whole_and_names_do_nothing(browser, folder):
    browser.open((folder / GALLERY).as_uri())
    loaded = browser.run(
        "Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth > 0 && i.clientWidth > 20)))"
    )
    assert loaded == [True] * 2 * len(HOSTILE)
    assert browser.run("[typeof window.hacked, document.scripts.length, document.images.length]") == [
        "undefined",
        1,
        2 * len(HOSTILE),
    ]
    names = browser.run("[...document.querySelectorAll('.card .name')].map(name => name.textContent)")
    escaped = {r"a\nline\rbreak\t.jpg", r"gnp.\u202egpj.exe", r"bytes that are no text \udcff\udce9.jpg"}
    assert set(names) - set(HOSTILE) == escaped and len(names) == len(HOSTILE)
    links = browser.run("[...document.querySelectorAll('.card a')].map(link => link.href)")
    paths = [Path(os.fsdecode(unquote_to_bytes(urlsplit(link).path))) for link in links]
    assert all(path.is_file() for path in paths if len(path.name) < 255) and len(paths) == 3 * len(HOSTILE)
    assert {urlsplit(url).scheme for url in browser.requests} == {"file", "data"}
    assert sum(url.startswith("file:") for url in browser.requests) == 1
    assert not browser.complaints


@needs_browser
def test_a_script_in_the_page_would_not_run(browser, folder, tmp_path):
    """Were a name to slip through: the page's policy lets only its own script run, and nothing be fetched."""
    page = (folder / GALLERY).read_text().replace("<h1>", "<script>window.hacked = 1</script><img src='x.png'><h1>")
    (tmp_path / GALLERY).write_text(page)
    Image.new("RGB", (5, 5)).save(tmp_path / "x.png")
    browser.open((tmp_path / GALLERY).as_uri())
    assert browser.run("[typeof window.hacked, document.images[0].naturalWidth]") == ["undefined", 0]
    assert "Content Security Policy" in "".join(browser.complaints)


@needs_browser
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_a_telephone(browser, folder, dark):
    browser.open((folder / GALLERY).as_uri(), width=360, height=780, dark=dark)
    assert browser.run("document.documentElement.scrollWidth") == 360
    ink, paper = browser.run("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
    brightness = [sum(map(int, colour[4:-1].split(","))) for colour in (ink, paper)]
    assert (brightness[0] > brightness[1]) == dark


@needs_browser
def test_filters(browser, folder):
    browser.open((folder / GALLERY).as_uri())

    def choose(status: str) -> None:
        button = f"document.querySelector('#filters [value={status}]').parentNode"
        browser.run("scrollTo(0, 0)")
        browser.click(*browser.run(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({button}.getBoundingClientRect())"))

    def left() -> list[str]:
        seen = "[...document.querySelectorAll('[data-status]')].filter(item => item.getClientRects().length)"
        return browser.run(f"{seen}.map(item => item.querySelector('.name').textContent)")

    accented = ["album/of 2026/\xe9t\xe9 100%.jpg"]
    for spelling in ("\\u00c9T\\u00e9", "E\\u0301Te\\u0301"):  # a letter with an accent, or a letter and an accent
        browser.run(f"document.querySelector('#filters [type=search]').value = '{spelling}'")
        browser.run("document.querySelector('#filters').dispatchEvent(new Event('input'))")
        assert left() == accented
    browser.run("document.querySelector('#filters [type=search]').value = ''")
    browser.run("document.querySelector('#filters').dispatchEvent(new Event('input'))")
    troubles = [row["input"] for row in TROUBLES]
    assert len(left()) == len(HOSTILE) + 3
    choose("failed")
    assert left() == troubles[:1] and browser.run("document.querySelector('#count').innerText").startswith(
        "1 of the 16"
    )
    choose("skipped")
    assert left() == troubles[1:]
    choose("done")
    assert len(left()) == len(HOSTILE)
    choose("all")
    browser.run("document.querySelector('#filters [type=search]').focus()")
    browser.type("NOTES")
    assert left() == troubles[1:]
    browser.type("<")
    assert left() == []
    assert not browser.complaints


@needs_browser
def test_keys_and_fingers(browser, folder):
    browser.open((folder / GALLERY).as_uri())
    name = HOSTILE[0]
    depth_m, _ = read_log_depth_png(folder / f"{name}.depth.png")
    browser.run(f"document.querySelectorAll('.card')[{card_number(name)}].querySelectorAll('a')[2].focus()")
    browser.press("Tab")
    seen = [told(browser)]
    for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp"):
        browser.press(key)
        seen.append(told(browser))
    assert [(x, y) for _, x, y in seen] == [(325, 245), (335, 245), (335, 255), (325, 255), (325, 245)]
    for depth, x, y in seen:
        assert_is_depth(depth, depth_m[y, x])
    browser.press("Escape")
    assert told(browser) is None

    left, top, wide, high = place(browser, name, 1)
    browser.tap(left + 0.7 * wide, top + 0.8 * high)
    depth, x, y = told(browser)
    assert_is_depth(depth, depth_m[y, x])
    browser.tap(left + 0.7 * wide, top + high + 90)
    assert told(browser) is None


@needs_browser
def test_looking_needs_no_script(browser, folder):
    browser.open((folder / GALLERY).as_uri(), script=False)
    visible = "(selector => [...document.querySelectorAll(selector)].filter(e => e.getClientRects().length).length)"
    shown = [browser.run(f"{visible}({selector!r})") for selector in (".frame img", ".troubles li", "#filters")]
    assert shown == [2 * len(HOSTILE), 3, 0]
    assert browser.run("[...document.images].every(image => image.naturalWidth > 0)")
