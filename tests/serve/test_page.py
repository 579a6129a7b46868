"""The page in a real browser: a photograph is dropped, read, measured and downloaded."""

import base64
import io
import json

import httpx
import numpy as np
import pytest
from PIL import Image

from metricgold.images import pinhole, points_from_depth, read_depth
from metricgold.predict.outputs import SUFFIXES
from metricgold.serve.model import kinds_here
from tests.support.browser import NAMES, Browser, find_browser
from tests.support.serving import CountingModel, depth_of, encoded, photograph, serving
from tests.support.waiting import wait_until

HEIGHT, WIDTH, FOCAL_35MM = 48, 64, 28
RGB = photograph(HEIGHT, WIDTH)
SOFTWARE_GL = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")


def photo() -> bytes:
    """With a camera in its EXIF."""
    exif = Image.Exif()
    exif[0x0110] = "Model 5"
    exif.get_ifd(0x8769)[0xA405] = FOCAL_35MM
    return encoded(RGB, exif=exif)


@pytest.fixture(scope="module")
def browser():
    if (program := find_browser()) is None:
        pytest.skip(f"none of {', '.join(NAMES)} is installed")
    with Browser(program, *SOFTWARE_GL) as opened:
        yield opened


@pytest.fixture(scope="module")
def server():
    with serving(CountingModel()) as (client, service):
        yield client, service


@pytest.fixture
def page(browser, server):
    browser.open(f"{server[0].base_url}", width=1100)
    wait_until(lambda: browser.run("document.querySelectorAll('#downloads button').length") == len(kinds_here()))
    return browser


def drop(page, data: bytes, name: str = "a b.png") -> None:
    page.run(f"""(() => {{
      const bytes = Uint8Array.from(atob("{base64.b64encode(data).decode()}"), c => c.charCodeAt(0));
      const carried = new DataTransfer();
      carried.items.add(new File([bytes], {json.dumps(name)}));
      document.querySelector("#drop").dispatchEvent(new DragEvent("drop", {{dataTransfer: carried, bubbles: true}}));
    }})()""")


def drop_and_wait(page, data: bytes | None = None, **named: str) -> None:
    drop(page, photo() if data is None else data, **named)
    wait_until(lambda: page.run("!document.querySelector('#result').hidden"), what="the result")


def place(page, view: int, x: int, y: int) -> tuple[float, float]:
    """Where a pixel of a picture is in the window."""
    page.run("document.querySelector('#views').scrollIntoView({block: 'center'})")
    box = f"document.querySelectorAll('.view')[{view}].getBoundingClientRect()"
    left, top, width, height = page.run(f"(it => [it.left, it.top, it.width, it.height])({box})")
    return left + (x + 0.5) / WIDTH * width, top + (y + 0.5) / HEIGHT * height


def shown(page, output: str) -> float:
    return float(page.run(f"document.querySelector('{output}').dataset.metres"))


def text(page, selector: str) -> str:
    return page.run(f"document.querySelector('{selector}').textContent")


def test_the_metres_at_the_pointer_are_those_of_the_depth_file(page, server):
    drop_and_wait(page)
    answer = server[0].post("/v1/depth", content=photo(), params={"format": "npz"})
    depth_m = read_depth(io.BytesIO(answer.content)).planar_depth_m
    for view, x, y in [(0, 0, 0), (1, 63, 47), (1, 20, 31), (0, 41, 7)]:
        page.move(*place(page, view, x, y))
        assert shown(page, "#reading") == depth_m[y, x] == depth_of(RGB)[y, x]
        assert text(page, "#reading").endswith(f"± 5.0 % at {x}, {y}")
    assert [one for one in page.complaints if "GPU stall" not in one] == []  # WebGL without a GPU is slow to read
    own = {str(server[0].base_url).rstrip("/"), "blob:" + str(server[0].base_url).rstrip("/"), "data:"}
    assert all(url.startswith(tuple(own)) for url in page.requests)


def test_the_distance_of_two_points_is_that_of_numpy(page):
    drop_and_wait(page)
    focal_px = FOCAL_35MM / np.hypot(36, 24) * np.hypot(WIDTH, HEIGHT)
    points_m = points_from_depth(depth_of(RGB), pinhole(focal_px, HEIGHT, WIDTH)).astype(np.float64)
    for (ax, ay), (bx, by) in [((3, 4), (60, 40)), ((10, 45), (50, 2))]:
        page.click(*place(page, 0, ax, ay))
        assert text(page, "#distance") == "Click a second point."
        page.click(*place(page, 1, bx, by))
        expected_m = np.linalg.norm(points_m[ay, ax] - points_m[by, bx])
        assert shown(page, "#distance") == pytest.approx(expected_m, rel=1e-6)


def test_all_of_it_works_by_keyboard(page):
    page.run("document.querySelector('#file').focus()")
    assert page.run("getComputedStyle(document.querySelector('#drop')).borderTopColor") == "rgb(31, 78, 140)"
    drop_and_wait(page)
    focused = []
    for _ in range(12):
        page.press("Tab")
        focused.append(page.run("document.activeElement.id || document.activeElement.name"))
        if focused[-1] == "views":
            break
    assert focused[:3] == ["preset", "focal", "unit"] and focused[-1] == "views"
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp", "ArrowUp"):
        page.press(key)
    x, y = WIDTH // 2 + 1, HEIGHT // 2 - 1
    assert shown(page, "#reading") == depth_of(RGB)[y, x]
    page.press("Enter")
    page.press("ArrowUp")
    page.press(" ")
    assert shown(page, "#distance") > 0
    page.press("Escape")
    assert text(page, "#distance").startswith("Click two points")
    page.press("Tab")
    assert page.run("document.activeElement.id") == "cloud"


def test_the_camera_of_exif_is_shown_and_can_be_edited(page):
    drop_and_wait(page)
    assert "Model 5" in text(page, "#camera") and "28.0 mm on 35 mm film" in text(page, "#camera")
    assert "EXIF" in text(page, "#camera") and page.run("document.querySelector('#focal').value") == "28.00"

    def edit(script: str, expected: str) -> None:
        page.run(script)
        wait_until(lambda: expected in text(page, "#camera") and page.run("!document.querySelector('#result').hidden"))

    change = "dispatchEvent(new Event('change', {bubbles: true}))"
    edit(f"(it => (it.value = '50', it.{change}))(document.querySelector('#focal'))", "50.0 mm on 35 mm film")
    assert "as you say" in text(page, "#camera")
    edit(f"(it => (it.value = 'fov_deg', it.{change}))(document.querySelector('#unit'))", "50.0° over the longer side")
    edit("document.querySelector('#by-exif').click()", "28.0 mm on 35 mm film")


@pytest.mark.parametrize("half", [0, 1])  # of one page Chromium saves ten files and then asks
def test_every_kind_is_downloaded(page, server, tmp_path, half):
    drop_and_wait(page)
    page.download_into(tmp_path)
    for kind in list(kinds_here())[half::2]:
        page.run(f"document.querySelector('[data-format={kind}]').click()")
        name = f"a b.png{SUFFIXES[kind]}"
        wait_until(lambda name=name: [path.name for path in tmp_path.iterdir()] == [name], what=name)
        form = {"image": ("a b.png", photo())}
        content = server[0].post("/v1/depth", files=form, params={"format": kind}).content
        found = (tmp_path / name).read_bytes()
        if kind == "json":  # that of the page names the depth file beside it
            assert json.loads(found) == json.loads(content) | {"sha256": json.loads(found)["sha256"]}
        else:
            assert found == content
        (tmp_path / name).unlink()


def test_a_text_file_is_refused_in_words_and_the_next_photograph_is_shown(page):
    drop(page, b"not a photograph", name="notes.txt")
    wait_until(lambda: page.run("!document.querySelector('#fault').hidden"))
    assert text(page, "#fault").startswith("notes.txt: not an image")
    assert page.run("document.querySelector('#result').hidden")
    drop_and_wait(page)
    assert page.run("document.querySelector('#fault').hidden")


def test_uncertainty_is_a_picture_too(page):
    drop_and_wait(page)
    picture = "document.querySelector('#map').toDataURL()"
    before = page.run(picture)
    page.run("document.querySelector('[value=uncertainty]').click()")
    assert page.run(picture) != before and text(page, "#high").endswith("%")


def test_the_points_are_drawn_and_turn(page):
    drop_and_wait(page)
    if "no WebGL" in text(page, "#cloud-note"):
        pytest.skip("this browser has no WebGL without a GPU")
    picture = "document.querySelector('#cloud').toDataURL()"
    page.run("document.querySelector('#cloud').focus()")
    wait_until(lambda: len(np.unique(drawn(page.run(picture)).reshape(-1, 3), axis=0)) > 50, what="the first drawing")
    first = drawn(page.run(picture))
    page.press("ArrowRight")
    assert not np.array_equal(drawn(page.run(picture)), first)
    page.press("ArrowLeft")
    np.testing.assert_allclose(drawn(page.run(picture)), first, atol=60)
    page.press(" ")
    wait_until(lambda: not np.array_equal(drawn(page.run(picture)), first))
    page.press(" ")


def drawn(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"), int)


def test_a_photograph_that_the_browser_cannot_decode_is_measured_all_the_same(page):
    drop_and_wait(page, encoded(RGB, "TIFF"), name="a.tiff")
    page.move(*place(page, 0, 5, 6))
    assert shown(page, "#reading") == depth_of(RGB)[6, 5]


@pytest.mark.parametrize("width", [360, 768, 1400])
def test_it_is_right_at_every_width(browser, server, width):
    browser.open(f"{server[0].base_url}", width=width, dark=width == 768)
    wait_until(lambda: browser.run("document.querySelectorAll('#downloads button').length"))
    drop_and_wait(browser)
    assert browser.run("document.documentElement.scrollWidth") <= width
    boxes = browser.run("[...document.querySelectorAll('.view')].map(one => one.getBoundingClientRect().top)")
    assert (boxes[0] == boxes[1]) == (width > 640)
    small = "[...document.querySelectorAll('button, select, input:not([type=radio]):not([type=file])')]"
    heights = browser.run(f"{small}.filter(it => it.offsetParent).map(it => it.offsetHeight)")
    assert min(heights) >= 40


def test_a_server_with_a_token_asks_for_it(browser):
    with serving(CountingModel(), token="s3cret") as (client, _):
        browser.open(f"{client.base_url}")
        wait_until(lambda: browser.run("!document.querySelector('#token-field').hidden"))
        wait_until(lambda: "Bearer" in text(browser, "#fault"))
        browser.run(
            """(it => (it.value = "s3cret", it.dispatchEvent(new Event("change"))))(document.querySelector("#token"))"""
        )
        wait_until(lambda: browser.run("document.querySelectorAll('#downloads button').length"))
        drop_and_wait(browser)
        assert httpx.post(f"{client.base_url}/v1/depth", content=photo()).status_code == 401


def test_the_page_says_what_may_run_on_it(server):
    answer = server[0].get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "<script>" not in answer.text and "style=" not in answer.text and "://" not in answer.text
