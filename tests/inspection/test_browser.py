"""The page in a real browser: what is greyed is exactly what Python drops, by mouse, by keyboard, on any screen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from onereel.build import build_selector
from onereel.config import TokensConfig
from onereel.inspection.clip import draw
from onereel.inspection.options import ClipOptions
from onereel.inspection.pages import inspect
from onereel.inspection.reading import clip_reading
from onereel.models.registry import create_encoder
from onereel.tokens.tubelets import patchify
from onereel.video.library import open_library

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SMALL = ClipOptions(num_frames=12, sampling_rate=1, size=64)
NUM_TOKENS = 6 * 4 * 4
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}

# Patches of the canvas that do not show what the frame itself shows there.
NUM_GREYED = """() => {
  const { width, height } = screen.canvas;
  const plain = Object.assign(document.createElement("canvas"), { width, height }).getContext("2d");
  plain.drawImage(images[state.frame], 0, 0, width, height);
  let greyed = 0;
  for (let place = 0; place < numPlaces; place++) {
    const box = [(place % gw) * width / gw, Math.floor(place / gw) * height / gh, width / gw, height / gh];
    const [a, b] = [screen, plain].map((context) => context.getImageData(...box).data);
    greyed += a.some((value, i) => value !== b[i]) ? 1 : 0;
  }
  return greyed;
}"""
# What reaches past the right edge of the window, apart from what lies in something that scrolls.
OVERFLOWING = """() => [...document.querySelectorAll("body *")]
  .filter((e) => !e.closest("#strip, svg, script, template") && e.getBoundingClientRect().right > innerWidth + 0.5)
  .map((e) => e.outerHTML.slice(0, 80))"""

OpenPage = Callable[..., "Page"]


@pytest.fixture(scope="module")
def written(moving_video: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return inspect(moving_video, out=tmp_path_factory.mktemp("page") / "page.html", clip=SMALL).page


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Opens a file in a window of its own; at the end of the test nothing has been complained of or asked for."""
    complaints: list[str] = []
    opened = []

    def complain(text: str) -> None:
        if "willReadFrequently" not in text:  # said of the pixels that these tests read
            complaints.append(text)

    def open_file(path: Path, viewport: dict[str, int] = DESKTOP, **options: Any) -> Page:
        page = browser.new_page(viewport=viewport, **{"reduced_motion": "reduce", **options})
        page.on("console", lambda message: complain(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda one: None if is_local(one.url) else complaints.append(one.url))
        page.goto(path.as_uri())
        opened.append(page)
        return page

    yield open_file
    for page in opened:
        page.close()
    assert not complaints


def is_local(url: str) -> bool:
    return url.startswith(("file:", "data:"))


@pytest.fixture
def page(open_page: OpenPage, written: Path) -> Page:
    page = open_page(written)
    page.wait_for_selector("body[data-ready]")
    return page


def wait_until(page: Page, condition: str) -> None:
    """As playwright's own, which evaluates text within the page; the page's policy forbids that."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(25)
    raise AssertionError(condition)


def choose(page: Page, key: str) -> None:
    page.locator("label", has=page.locator(f"input[value={key}]")).click()


def slide(page: Page, value: float) -> None:
    """Move the slider, as a person's hand does: the value, then the event."""
    page.locator("#slider").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }",
        value,
    )


Mask = Callable[[TokensConfig], list[int]]


def masks_of(video: Path, options: ClipOptions) -> Mask:
    """The mask of any selector itself, on the clip of the page."""
    reading, library = clip_reading(options), open_library()
    clip = library.read(reading.spec(str(video), library.info(str(video))))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (reading.augment.mean, reading.augment.std))
    clips = ((clip.float() / 255 - mean) / std)[None]
    patches = patchify(clips, 2, 16)

    def mask(tokens: TokensConfig) -> list[int]:
        selector = build_selector(tokens, 2, 16)
        return selector.select(clips, patches, reading.grid, draw()).keep_mask[0].int().tolist()

    return mask


@pytest.fixture(scope="module")
def select(moving_video: Path) -> Mask:
    return masks_of(moving_video, SMALL)


def check(page: Page, expected: list[int]) -> None:
    """Mask, figures, and every frame's pixels are those of `expected`."""
    assert page.evaluate("Array.from(mask)") == expected
    assert page.locator("#tokens").inner_text() == f"{sum(expected)} of {NUM_TOKENS}"
    places = NUM_TOKENS // 6
    counts = [sum(expected[t * places : (t + 1) * places]) for t in range(6)]
    assert page.locator(".cell .count").all_inner_texts() == [str(count) for count in counts]
    for frame in (0, 5, 11):
        page.evaluate("show", frame)
        assert page.evaluate(NUM_GREYED) == places - counts[frame // 2]


@pytest.mark.parametrize(("key", "reference"), [("adjacent", "adjacent"), ("anchored", "anchor")])
def test_the_threshold_greys_what_python_drops(
    key: str, reference: Any, page: Page, select: Mask
) -> None:
    choose(page, key)
    kept = set()
    for threshold in (0.0, 0.005, 0.035, 0.1, 0.165, 0.3, 0.5):
        slide(page, threshold)
        tokens = TokensConfig(kind="run-length", reference=reference, threshold=threshold)
        check(page, expected := select(tokens))
        kept.add(sum(expected))
    assert len(kept) >= 4


@pytest.mark.parametrize("kind", ["redundancy", "group-dynamic", "random", "tube"])
def test_the_budget_greys_what_python_drops(kind: str, page: Page, select: Mask) -> None:
    choose(page, kind)
    for budget in (6, 12, 30, 54, NUM_TOKENS) if kind == "tube" else (1, 2, 13, 57, NUM_TOKENS):
        slide(page, budget)
        check(page, select(TokensConfig(kind=kind, token_budget=budget)))


def test_the_next_selector_starts_at_the_same_budget(page: Page, select: Mask) -> None:
    kept = page.evaluate("numKept")
    assert kept == sum(select(TokensConfig(kind="run-length")))
    choose(page, "random")
    assert page.evaluate("numKept") == kept
    choose(page, "all")
    check(page, [1] * NUM_TOKENS)
    assert page.locator("#slider").is_disabled()
    choose(page, "redundancy")
    assert page.evaluate("numKept") == kept
    page.locator("#published").click()
    check(page, select(TokensConfig(kind="redundancy")))


def test_filling_shows_what_was_last_kept(page: Page) -> None:
    slide(page, 0.5)
    page.evaluate("show", 6)
    corner = "Array.from(screen.getImageData(0, 0, 16, 16).data)"
    first, later = page.evaluate(f"show(0), {corner}"), page.evaluate(f"show(6), {corner}")
    assert first != later
    page.get_by_label("Fill dropped patches").check()
    # The corner drifts, but the token that stands for it is the first tubelet's.
    assert page.evaluate(f"show(0), {corner}") == page.evaluate(f"show(6), {corner}") == first


def giga(number: int) -> str:
    return f"{number / 1e9:.1f}" if number >= 1e10 else f"{number / 1e9:#.3g}"


def test_figures_are_those_of_the_models_themselves(page: Page) -> None:
    for name, size in (("ViT-S/16", "small"), ("ViT-L/16", "large")):
        with torch.device("meta"):
            encoder = create_encoder(f"vit_{size}_patch16_64", num_frames=12)
        page.get_by_label("Compute of").select_option(name)
        dense = encoder.macs([NUM_TOKENS])
        for key, embeds_all in (("random", False), ("redundancy", True)):
            choose(page, key)
            slide(page, 30)
            macs = encoder.macs([30], NUM_TOKENS if embeds_all else None)
            assert page.locator("#macs").inner_text() == f"{giga(macs)} GMACs"
            assert page.locator("#flops").inner_text() == f"{giga(2 * macs)} GFLOPs (2 × MACs)"
            assert page.locator("#speed").inner_text() == f"{dense / macs:.2f}×"
            assert page.evaluate("macs(state.model, 30, 30)") == encoder.macs([30])


def test_run_lengths_are_told_for_patches_and_tubelets(page: Page) -> None:
    slide(page, 0.5)
    page.locator("#screen").hover(position={"x": 150, "y": 300})
    assert "stands for" in page.locator("#place").inner_text()
    page.locator(".cell").nth(0).hover()
    told = page.locator("#detail").inner_text()
    assert told.startswith("Tubelet 1, frames 1 to 2: 16 of 16 patches kept")
    lengths = page.evaluate("Array.from(runs.lengths.subarray(0, 16))")
    assert f"6 ({lengths.count(6)}×)" in told
    assert page.evaluate("runs.lengths.reduce((a, b) => a + b)") == NUM_TOKENS


def test_everything_works_from_the_keyboard(page: Page) -> None:
    press = page.keyboard.press
    press("ArrowRight")
    press(".")
    press("ArrowLeft")
    assert page.evaluate("state.frame") == 1
    press("Space")
    assert page.evaluate("state.playing")
    wait_until(page, "state.frame !== 1")
    press("Space")
    assert not page.evaluate("state.playing")
    press("f")
    assert page.locator("#fill").is_checked()
    reached = []
    for _ in range(8):
        press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.value"))
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        label = "getComputedStyle(document.activeElement.nextElementSibling ?? document.body).outlineStyle"
        assert "solid" in (page.evaluate(outline), page.evaluate(label))
        if reached[-1] == "adjacent":
            press("ArrowRight")
            assert page.evaluate("state.selector.key") == "anchored"
            press("ArrowLeft")  # whose threshold is published, and has a button
        if reached[-1] == "slider":
            before = page.evaluate("state.threshold")
            press("ArrowRight")
            assert page.evaluate("state.threshold") == pytest.approx(before + 0.005)
    assert reached[:7] == ["play", "frame", "fill", "adjacent", "published", "slider", "model"]
    press("Enter")
    assert page.evaluate("state.frame") == 0


def test_it_plays_by_itself_unless_motion_is_unwelcome(
    open_page: OpenPage, written: Path, page: Page
) -> None:
    assert not page.evaluate("state.playing")
    moving = open_page(written, reduced_motion="no-preference")
    wait_until(moving, "state.frame > 1")
    moving.get_by_role("button", name="Pause").click()
    assert not moving.evaluate("state.playing")


def test_controls_have_names(page: Page) -> None:
    for role, name in (
        ("button", "Play"),
        ("slider", "Frame"),
        ("slider", "Threshold 0.100"),
        ("radio", "Redundancy"),
        ("combobox", "Compute of"),
        ("checkbox", "Fill dropped patches"),
        ("img", "The clip; dropped patches are grey"),
    ):
        assert page.get_by_role(role, name=name).count() == 1, name  # type: ignore[arg-type]
    assert page.get_by_role("button", name="Tubelet 3").count() == 1


def test_nothing_overflows(page: Page) -> None:
    for viewport in (PHONE, {"width": 320, "height": 568}, {"width": 768, "height": 1024}, DESKTOP):
        page.set_viewport_size(viewport)  # type: ignore[arg-type]
        for key in ("adjacent", "group-dynamic", "all"):
            choose(page, key)
            assert page.evaluate(OVERFLOWING) == [], viewport


def test_colours_follow_the_system(page: Page) -> None:
    """Text and page swap brightness, and so does what the dropped patches are covered with."""
    brightness = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    slide(page, 0.5)
    page.evaluate("show", 11)
    seen = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
        wait_until(page, f"matchMedia('(prefers-color-scheme: {scheme})').matches")
        wait_until(
            page, "theme.wash === getComputedStyle(document.body).getPropertyValue('--wash')"
        )
        pixel = page.evaluate("Array.from(screen.getImageData(0, 0, 1, 1).data)")
        seen[scheme] = sum(page.evaluate(brightness)), sum(pixel[:3])
    assert seen["light"][0] > 600 > 150 > seen["dark"][0]
    assert seen["light"][1] > seen["dark"][1] + 100


def test_the_index_finds_orders_and_leads_to_pages(
    open_page: OpenPage, make_video: Callable[..., Path], moving_video: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    make_video(folder / "numbers.mp4", num_frames=24, height=64, width=96)
    (folder / "moving and more.mp4").write_bytes(moving_video.read_bytes())
    (folder / "text.mp4").write_text("no video")
    page = open_page(inspect(folder, out=tmp_path / "all.html", clip=SMALL).page, PHONE)
    names = page.locator("#videos li:visible .name")
    assert names.all_inner_texts() == ["moving and more.mp4", "numbers.mp4"]
    shares = page.locator("#videos li").evaluate_all("list => list.map((li) => +li.dataset.kept)")
    page.get_by_label("Order").select_option("most")
    ordered = sorted(zip(shares, ["moving and more.mp4", "numbers.mp4"]), reverse=True)
    assert names.all_inner_texts() == [name for _, name in ordered]
    page.get_by_label("Find").fill("MORE")
    assert names.all_inner_texts() == ["moving and more.mp4"]
    assert page.locator("#found").inner_text() == "1 of 2 videos"
    assert page.get_by_text("text.mp4").count() == 1
    assert page.evaluate(OVERFLOWING) == []
    page.get_by_role("link", name="moving and more.mp4").click()
    page.wait_for_selector("body[data-ready]")
    page.get_by_role("link", name="All videos").click()
    assert page.locator("#videos li").count() == 2


@pytest.mark.parametrize("video", ["long/udacity_dashcam_9s.mp4", "actions5/wave/a3_s1_t1.mp4"])
def test_a_real_clip_at_its_usual_size(
    video: str, real_data: Path, open_page: OpenPage, tmp_path: Path
) -> None:
    written = inspect(real_data / video, out=tmp_path / "page.html").page
    assert written.stat().st_size < 1.5e6
    page = open_page(written)
    page.wait_for_selector("body[data-ready]")
    mask = masks_of(real_data / video, ClipOptions())
    for key, reference in (("adjacent", "adjacent"), ("anchored", "anchor")):
        choose(page, key)
        for threshold in (0.05, 0.1, 0.25):
            slide(page, threshold)
            tokens = TokensConfig(kind="run-length", reference=reference, threshold=threshold)  # type: ignore[arg-type]
            assert page.evaluate("Array.from(mask)") == mask(tokens)
    for kind in ("redundancy", "group-dynamic", "random", "tube"):
        choose(page, kind)
        for budget in (8, 400, 944):
            slide(page, budget)
            expected = mask(TokensConfig(kind=kind, token_budget=budget))
            assert page.evaluate("Array.from(mask)") == expected
