"""The server: what it answers, what it refuses, that images are read together, and that nothing is lost."""

import asyncio
import base64
import contextlib
import io
import json
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from starlette.testclient import TestClient

from tests.cases import DIGITS, READER, ROOT
from ved_cli.serving.app import make_app
from ved_cli.serving.batching import Batcher, FullError
from ved_cli.serving.engine import Engine, Job
from ved_cli.serving.metrics import Metrics
from ved_cli.serving.settings import Settings
from ved_core.errors import ConfigError
from ved_core.pipeline import Reading

SAMPLES = json.loads((DIGITS / "expected.json").read_text())["samples"]
TEXTS = [sample["greedy_text"] for sample in SAMPLES]
IMAGES = [path.read_bytes() for path in sorted(DIGITS.glob("*.png"))]
PNG = {"content-type": "image/png"}
SETTINGS = Settings(batch_size=4, linger=0.02, max_waiting=12, max_images=6, max_bytes=200_000)


def pipeline(framework):
    pytest.importorskip(framework)
    module = __import__(f"ved_{framework}")
    return module.ImageToText.from_pretrained(READER)


@contextlib.contextmanager
def served(framework, options=None, settings=SETTINGS):
    """A client of a server that is ready."""
    app = make_app(Engine(pipeline(framework), options or {}, settings), {"model": "digits", "framework": framework})
    with TestClient(app, raise_server_exceptions=False) as client:
        assert app.state.server.engine.served
        until(lambda: client.get("/ready").status_code == 200)
        yield client


def until(holds, seconds=60.0):
    """Wait for what another thread brings about."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module", params=["torch", pytest.param("flax", marks=pytest.mark.slow)])
def client(request):
    with served(request.param) as client:
        yield client


def texts(response):
    assert response.status_code == 200, response.text
    return [reading.get("text") for reading in response.json()["readings"]]


def metric(client, line):
    found = re.search(rf"^{re.escape(line)} (.*)$", client.get("/metrics").text, flags=re.MULTILINE)
    return float(found.group(1)) if found else 0.0


def form(images, **options):
    return {"files": [("image", (f"{n}.png", image)) for n, image in enumerate(images)], "data": options}


def test_every_way_to_send_images(client):
    codes = [base64.b64encode(image).decode() for image in IMAGES[:2]]
    assert texts(client.post("/read", content=IMAGES[0], headers=PNG)) == TEXTS[:1]
    assert texts(client.post("/read", content=IMAGES[0], headers={"content-type": "application/octet-stream"}))
    assert texts(client.post("/read", **form(IMAGES[:3]))) == TEXTS[:3]
    assert texts(client.post("/read", json={"images": [codes[0], f"data:image/png;base64,{codes[1]}"]})) == TEXTS[:2]


def test_a_reading_says_what_ved_read_says(client):
    (reading,) = client.post("/read", content=IMAGES[1], headers=PNG).json()["readings"]
    assert reading.keys() == {"image", "text", "confidence"}
    assert 0.9 < reading["confidence"] <= 1


def test_a_shorter_text_can_be_asked_for_in_each_form(client):
    short = TEXTS[1].split()[0]
    code = base64.b64encode(IMAGES[1]).decode()
    assert texts(client.post("/read?max_new_tokens=1", content=IMAGES[1], headers=PNG)) == [short]
    assert texts(client.post("/read", **form(IMAGES[1:2], max_new_tokens="1"))) == [short]
    assert texts(client.post("/read", json={"images": [code], "options": {"max_new_tokens": 1}})) == [short]


def test_bad_images_are_named_and_the_rest_is_read(client):
    bad = metric(client, 'ved_images_total{outcome="bad"}')
    response = client.post("/read", **form([IMAGES[0], b"no image", IMAGES[1]]))
    readings = response.json()["readings"]
    assert texts(response) == [TEXTS[0], None, TEXTS[1]]
    assert (readings[1]["image"], "format" in readings[1]["error"]) == ("1.png", True)
    assert metric(client, 'ved_images_total{outcome="bad"}') == bad + 1


REFUSED = {
    "not an image": ({"content": b"text", "headers": PNG}, 422, "format"),
    "nothing": ({"content": b"", "headers": PNG}, 422, "no image"),
    "no type": ({"content": IMAGES[0]}, 415, "image/"),
    "another type": ({"content": IMAGES[0], "headers": {"content-type": "text/plain"}}, 415, "text/plain"),
    "too large": ({"content": bytes(200_001), "headers": PNG}, 413, "200,000 bytes"),
    "too large, size not said": ({"content": lambda: iter([bytes(150_000)] * 3), "headers": PNG}, 413, "200,000 bytes"),
    "a form too large": (form([bytes(250_000)]), 413, "200,000 bytes"),
    "too many images": (form(IMAGES[:7]), 413, "Too many files"),
    "too many in JSON": ({"json": {"images": [""] * 7}}, 413, "more than 6"),
    "no JSON": ({"content": b"{", "headers": {"content-type": "application/json"}}, 422, "JSON"),
    "other JSON": ({"json": [1]}, 422, "images"),
    "JSON with more": ({"json": {"images": [], "option": {}}}, 422, "option"),
    "no base64": ({"json": {"images": ["?"]}}, 422, "images[0]"),
    "unknown option": (form(IMAGES[:1], beams="3"), 422, "'beams'"),
    "an option twice": ({**form(IMAGES[:1], max_new_tokens="1"), "params": {"max_new_tokens": 2}}, 422, "twice"),
    "a wrong type": (form(IMAGES[:1], max_new_tokens="few"), 422, "max_new_tokens"),
    "another program": (form(IMAGES[:1], num_beams="3"), 422, "num_beams = 3 would take another compiled program"),
    "one more processor": (form(IMAGES[:1], repetition_penalty="2"), 422, "repetition_penalty"),
    "too long": (form(IMAGES[:1], max_new_tokens="30"), 422, "compiled here"),
    "a longer prompt": (form(IMAGES[:1], prompt="two three"), 422, "prompt"),
    "a seed for nothing": (form(IMAGES[:1], seed="3"), 422, "sampling"),
    "what programs want back": (form(IMAGES[:1], output_scores="true"), 422, "output_scores"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(client, case):
    arguments, status, message = REFUSED[case]
    arguments = {name: value() if callable(value) else value for name, value in arguments.items()}
    response = client.post("/read", **arguments)
    assert (response.status_code, list(response.json())) == (status, ["error"]), response.text
    assert message in response.json()["error"]
    assert metric(client, "ved_taken_places") == 0


def test_an_image_that_would_fill_the_memory(client):
    file = io.BytesIO()
    Image.new("1", (6000, 6000)).save(file, "PNG")
    response = client.post("/read", content=file.getvalue(), headers=PNG)
    assert (response.status_code, "25000000 pixels" in response.json()["error"]) == (422, True)


def test_images_that_arrive_together_are_one_batch(client):
    with held(client) as server:
        with ThreadPoolExecutor(9) as pool:
            first = pool.submit(client.post, "/read", content=IMAGES[0], headers=PNG)
            assert server.entered.wait(60)
            others = [pool.submit(client.post, "/read", content=image, headers=PNG) for image in IMAGES[1:9]]
            until(lambda: server.batcher.waiting == 8)
            server.release.set()
            found = [texts(answer.result())[0] for answer in (first, *others)]
        assert found == TEXTS[:9]
        assert server.sizes == [1, 4, 4]


@contextlib.contextmanager
def held(client):
    """The server, whose engine sets `entered` and waits for `release` in each batch; `sizes`: of the batches."""
    server = client.app.state.server
    server.entered, server.release, server.sizes = threading.Event(), threading.Event(), []
    read = server.engine.read

    def waiting(jobs):
        server.entered.set()
        assert server.release.wait(60)
        server.sizes.append(len(jobs))
        return read(jobs)

    server.engine.read = waiting
    try:
        yield server
    finally:
        server.release.set()
        server.engine.read = read


def test_nothing_is_lost_when_there_is_too_much(client):
    with held(client) as server, ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(client.post, "/read", content=IMAGES[n % 12], headers=PNG) for n in range(16)]
        until(lambda: sum(answer.done() for answer in answers) == 4)
        several = client.post("/read", **form(IMAGES[:2]))
        refused = [answer.result() for answer in answers if answer.done()]
        server.release.set()
        for response in [*refused, several]:
            assert response.status_code == 429
            assert int(response.headers["retry-after"]) >= 1
        taken = [(n, answer.result()) for n, answer in enumerate(answers) if answer.result() not in refused]
    assert len(taken) == 12
    assert all(texts(response) == [TEXTS[n % 12]] for n, response in taken)
    assert metric(client, "ved_taken_places") == 0
    assert texts(client.post("/read", content=IMAGES[0], headers=PNG)) == TEXTS[:1]


def test_a_batch_that_fails_is_an_error_of_its_images_alone(client, monkeypatch):
    server = client.app.state.server
    with monkeypatch.context() as patched:
        patched.setattr(server.engine, "read", lambda jobs: 1 / 0)
        response = client.post("/read", content=IMAGES[0], headers=PNG)
    assert (response.status_code, response.json()) == (500, {"error": "internal error: the server's log says more"})
    assert texts(client.post("/read", content=IMAGES[0], headers=PNG)) == TEXTS[:1]
    assert client.get("/health").status_code == 200


def events(response):
    assert response.headers["content-type"].startswith("text/event-stream")
    return [(name, json.loads(data)) for name, data in re.findall(r"event: (.*)\ndata: (.*)\n\n", response.text)]


def test_a_stream_is_the_text_in_pieces(client):
    *pieces, (last, whole) = events(client.post("/stream", content=IMAGES[1], headers=PNG))
    assert {name for name, _ in pieces} == {"piece"}
    assert (last, whole["text"]) == ("end", TEXTS[1])
    assert "".join(piece["text"] for _, piece in pieces) == TEXTS[1]
    short = events(client.post("/stream?max_new_tokens=1", content=IMAGES[1], headers=PNG))
    assert short[-1][1]["text"] == TEXTS[1].split()[0]
    assert client.post("/stream", **form(IMAGES[:2])).status_code == 422
    assert client.post("/stream", content=b"x", headers=PNG).status_code == 422
    assert metric(client, "ved_taken_places") == 0


def test_what_watches_over_it(client):
    assert client.get("/health").json() == {"alive": True}
    about = client.get("/").json()
    assert about["model"] == "digits"
    assert {"max_new_tokens", "prompt", "seed"} <= set(about["options"])
    assert about["limits"]["max_images"] == 6
    before = metric(client, 'ved_requests_total{path="other",status="404"}')
    assert client.get("/nowhere").json() == {"error": "Not Found"}
    assert client.get("/read").status_code == 405
    assert metric(client, 'ved_requests_total{path="other",status="404"}') == before + 1
    assert metric(client, "ved_ready") == 1
    assert metric(client, "ved_batch_images_count") > 0
    assert "/read" in client.get("/openapi.json").json()["paths"]


def test_nothing_is_compiled_for_a_request():
    jax = pytest.importorskip("jax")
    compiled = []

    def note(event, *_, **__):
        if "backend_compile" in event:
            compiled.append(event)

    with served("flax", {"do_sample": True, "temperature": 0.7}, Settings(batch_size=2)) as client:
        jax.monitoring.register_event_duration_secs_listener(note)
        try:
            for count in (1, 2, 3):
                texts(client.post("/read", **form(IMAGES[:count])))
            for options in ({"temperature": 2}, {"max_new_tokens": 3}, {"seed": 1}, {"top_k": 40, "temperature": 1.5}):
                texts(client.post("/read", **form(IMAGES[:2], **{name: str(x) for name, x in options.items()})))
                events(client.post("/stream", content=IMAGES[5], headers=PNG, params=options))
        finally:
            jax.monitoring.unregister_event_duration_listener(note)
    assert not compiled


def test_a_seed_gives_the_same_whatever_the_neighbours():
    options = {"do_sample": True, "temperature": 4.0, "top_k": 0}
    with served("torch", options) as client:

        def draw(images, **given):
            return texts(client.post("/read", **form(images, **given)))

        alone = draw(IMAGES[:6], seed="7")
        with ThreadPoolExecutor(3) as pool:
            noise = [pool.submit(draw, IMAGES[6:7], seed=seed) for seed in ("7", "8")]
            again = draw(IMAGES[:6], seed="7")
            [each.result() for each in noise]
        assert alone == again != draw(IMAGES[:6], seed="8")
        free = draw(IMAGES[:1] * 4)
        assert len({*free, *draw(IMAGES[:1] * 4)}) > 1
        assert len(set(free)) > 1


def test_beams_are_compiled_where_they_are_asked_for():
    with served("torch", {"num_beams": 3, "num_return_sequences": 2}) as client:
        (reading,) = client.post("/read", content=IMAGES[0], headers=PNG).json()["readings"]
        assert (reading["text"], len(reading["alternatives"])) == (TEXTS[0], 1)
        assert "beams" in client.post("/stream", content=IMAGES[0], headers=PNG).json()["error"]


def test_before_it_is_ready_and_where_it_cannot_be():
    engine = Engine(pipeline("torch"), {}, SETTINGS)
    release, failures = threading.Event(), []

    async def warm_up():
        await engine.run(release.wait)
        raise MemoryError

    engine.warm_up = warm_up
    with TestClient(make_app(engine, {}, lambda: failures.append(1))) as client:
        assert (client.get("/ready").status_code, client.get("/health").status_code) == (503, 200)
        response = client.post("/read", content=IMAGES[0], headers=PNG)
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        release.set()
        until(lambda: failures)
        assert client.get("/ready").status_code == 503


class Slow:
    """An engine for the batcher alone: a batch takes as long as the test says."""

    settings = Settings(batch_size=2, max_waiting=4, max_images=2, linger=0)

    def __init__(self):
        self.batches, self.release = [], asyncio.Event()

    def read(self, jobs):
        self.batches.append([job.pixels for job in jobs])
        return [Reading(job.pixels, 1.0) for job in jobs]

    async def run(self, function, *arguments):
        await self.release.wait()
        return function(*arguments)


def job(name, group=0):
    return Job(name, None, None, (group,))


def test_batches_have_one_group_and_keep_the_order():
    async def run():
        engine = Slow()
        batcher = Batcher(engine, Metrics([2]))
        task = asyncio.create_task(batcher.run())
        futures = batcher.put([job("a", 0), job("b", 1), job("c", 0), job("d", 0), job("e", 1), job("f", 1)])
        futures[2].cancel()  # its client has gone
        engine.release.set()
        await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), 10)
        task.cancel()
        return engine.batches

    assert asyncio.run(run()) == [["a", "d"], ["b", "e"], ["f"]]


def test_places_are_counted():
    async def run():
        batcher = Batcher(Slow(), Metrics([2]))
        with batcher.places() as one:
            one.take(3)
            with batcher.places() as other:
                other.take(1)
                with pytest.raises(FullError):
                    other.take(2)
            assert batcher.taken == 3
        return batcher.taken

    assert asyncio.run(run()) == 0


def test_limits_that_cannot_be():
    assert Settings(batch_size=6).buckets == (1, 2, 4, 6)
    assert Settings(batch_size=1).buckets == (1,)
    for limits in ({"max_images": 65}, {"batch_size": 0}, {"linger": -1.0}):
        with pytest.raises(ConfigError):
            Settings(**limits)


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["flax", "torch"])
def test_sigterm_ends_it_when_all_is_answered(framework):
    pytest.importorskip(framework)
    command = [sys.executable, "-m", "ved_cli", "serve", "--model", str(READER), "--framework", framework]
    with subprocess.Popen(
        [*command, "--port", "0", "--json", "--batch-size", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    ) as process:
        url = json.loads(process.stdout.readline())["url"]
        import httpx2

        with httpx2.Client(base_url=url, timeout=60) as client:
            until(lambda: ready(client))
            with ThreadPoolExecutor(12) as pool:
                impatient = pool.submit(httpx2.post, f"{url}/read", content=IMAGES[0], headers=PNG, timeout=0.02)
                answers = [pool.submit(client.post, "/read", content=x, headers=PNG) for x in IMAGES]
                until(lambda: metric(client, "ved_taken_places") > 6)
                process.send_signal(signal.SIGTERM)
                assert [texts(answer.result())[0] for answer in answers] == TEXTS
                with contextlib.suppress(httpx2.TimeoutException):
                    impatient.result()
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 0
        assert "never retrieved" not in said, "whoever goes away leaves nothing behind"


def ready(client):
    import httpx2

    with contextlib.suppress(httpx2.TransportError):
        return client.get("/ready").status_code == 200
    return False
