"""The page to try a model: what it does with one, and the page itself in a headless browser."""

import itertools
import json
import shutil
import signal
import subprocess
import sys

import pytest
from PIL import Image

from tests.cases import DIGITS, READER, ROOT
from ved_cli.page.session import MOST_MODELS, OPAQUE, Choice, Session
from ved_core.errors import VedError

SAMPLES = json.loads((DIGITS / "expected.json").read_text())["samples"]
TEXTS = [sample["greedy_text"] for sample in SAMPLES]
PICTURE = Image.open(DIGITS / "01.png").convert("RGB")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture(scope="module", params=["torch", pytest.param("flax", marks=pytest.mark.slow)])
def framework(request):
    pytest.importorskip(request.param)
    return request.param


@pytest.fixture(scope="module")
def session():
    return Session()


def test_a_text_grows_and_is_what_was_read(session, framework):
    choice = Choice(str(READER))
    pieces = list(session.pieces(framework, PICTURE, choice))
    assert pieces[-1] == TEXTS[1]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(pieces))
    outcome = session.outcome(framework, PICTURE, choice)
    ((text, confidence, score),) = outcome.texts
    assert (text, score) == (TEXTS[1], None)
    assert 0.9 < confidence <= 1
    assert outcome.tokens == len(TEXTS[1].split()) + 1
    assert outcome.again > 0


def test_attention_is_of_words_over_the_image(session, framework):
    image, words = session.outcome(framework, PICTURE, Choice(str(READER))).attention
    assert image.shape == (48, 48, 3)
    assert [label.split()[1] for _, label in words] == TEXTS[1].split()
    assert all(heat.shape == (48, 48) and heat.min() >= 0 and heat.max() == OPAQUE for heat, _ in words)


def test_beams_come_with_their_scores_best_first(session, framework):
    choice = Choice(str(READER), "beam search", num_beams=3)
    assert list(session.pieces(framework, PICTURE, choice)) == []
    texts = session.outcome(framework, PICTURE, choice).texts
    assert texts[0][0] == TEXTS[1]
    assert len({text for text, _, _ in texts}) == 3
    scores = [score for _, _, score in texts]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.slow
def test_sampling_follows_its_seed_in_stream_and_table(session, framework):
    def draw(seed):
        choice = Choice(str(READER), "sampling", temperature=4.0, top_p=0.95, seed=seed, max_new_tokens=4)
        # An end that is drawn first has no pieces.
        text = ["", *session.pieces(framework, PICTURE, choice)][-1]
        assert session.outcome(framework, PICTURE, choice).texts[0][0] == text
        return text

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(4)}) > 1


@pytest.mark.slow
def test_models_are_kept_and_let_go(framework, tmp_path):
    session = Session()
    names = [str(shutil.copytree(READER, tmp_path / str(n))) for n in range(MOST_MODELS + 1)]
    first = session.pipeline(framework, names[0])
    assert session.pipeline(framework, names[0]) is first
    for name in names[1:]:
        session.pipeline(framework, name)
    assert session.pipeline(framework, names[0]) is not first
    for wrong in ("", "./nowhere"):
        with pytest.raises(VedError):
            session.pipeline(framework, wrong)


@pytest.fixture
def page_url():
    pytest.importorskip("gradio")
    command = [sys.executable, "-m", "ved_cli", "demo", "--model", str(READER), "--no-browser", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) as process:
        yield json.loads(process.stdout.readline())["url"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is here")
def test_the_page_in_a_browser(page_url, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    pytest.importorskip("flax")
    pytest.importorskip("torch")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1040})
        page.set_default_timeout(180_000)
        failures, outside = [], []
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.on("request", lambda request: outside.append(request.url) if page_url not in request.url else None)
        page.goto(page_url)
        expect = playwright.expect
        expect.set_options(timeout=180_000)

        page.click("#read")
        expect(page.get_by_text("There is no image yet")).to_be_visible()
        page.set_input_files("input[type=file] >> nth=0", DIGITS / "01.png")
        page.wait_for_selector("img[alt], .image-frame img")
        page.click("#read")
        for name in ("flax", "torch"):
            expect(page.locator(f"#text-{name} textarea")).to_have_value(TEXTS[1])
            expect(page.locator(f"#texts-{name}")).to_contain_text(TEXTS[1])
        expect(page.locator("#times")).to_contain_text("PyTorch")
        words = page.locator("#attention .legend-item")
        expect(words).to_have_count(len(TEXTS[1].split()))
        words.nth(0).hover()
        expect(page.locator("#attention img.mask.inactive")).to_have_count(len(TEXTS[1].split()) - 1)
        page.screenshot(path=tmp_path / "greedy.png")

        page.get_by_label("beam search").check()
        page.click("#read")
        for name in ("flax", "torch"):
            expect(page.locator(f"#texts-{name} [role=gridcell][data-testid$='-0']")).to_have_count(4)
        expect(page.locator("#times")).to_contain_text("PyTorch")
        page.screenshot(path=tmp_path / "beams.png")

        page.get_by_role("tab", name="Draw").click()
        page.get_by_label("Brush", exact=True).click()
        canvas = page.locator("canvas").first
        box = canvas.bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.3)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.7, steps=8)
        page.mouse.up()
        page.get_by_label("greedy").check()
        page.click("#read")
        expect(page.locator("#texts-torch [role=gridcell][data-testid$='-0']")).to_have_count(1)
        expect(page.locator("#text-torch textarea")).to_have_value(page.input_value("#text-flax textarea"))
        page.screenshot(path=tmp_path / "draw.png")
        browser.close()
    assert not failures
    assert not [url for url in outside if not url.startswith(("data:", "blob:"))]
