"""What `ved serve` does under load, on the loopback interface: throughput of many clients against one, overload, and
its end in the middle of requests. Ratios are medians of alternating rounds; the exit status is 1 where anything is
lost."""

import argparse
import contextlib
import dataclasses
import http.client
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from tests.cases import DIGITS, READER

ROUNDS = 5
HEADERS = {"Content-Type": "image/png"}
IMAGES = [path.read_bytes() for path in sorted(DIGITS.glob("*.png"))]
SAMPLES = json.loads((DIGITS / "expected.json").read_text())["samples"]
TEXTS = [sample["greedy_text"] for sample in SAMPLES]
SMALL = {
    "encoder": {"model_type": "vit", "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}
    | {"intermediate_size": 1536, "image_size": 224, "patch_size": 16},
    "decoder": {"model_type": "trocr", "d_model": 256, "decoder_layers": 6, "decoder_attention_heads": 8}
    | {"decoder_ffn_dim": 1024, "max_position_embeddings": 512, "cross_attention_hidden_size": 384},
}
"""TrOCR small's decoder, with a smaller vocabulary, behind a ViT of its size."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """Of image `number`: status 0 where the connection was refused or broke, `sent` where the request had gone out."""

    number: int
    status: int
    text: str | None
    retry: str | None
    sent: bool = True


class Client:
    """One connection that is kept, as a client of its own has it."""

    def __init__(self, url: str) -> None:
        self.place = urlsplit(url).netloc
        self.connection = http.client.HTTPConnection(self.place, timeout=120)

    def read(self, number: int) -> Answer:
        """Send one image."""
        sent = False
        try:
            self.connection.request("POST", "/read", IMAGES[number % len(IMAGES)], HEADERS)
            sent = True
            response = self.connection.getresponse()
            found = json.loads(response.read())
        except (OSError, http.client.HTTPException):
            self.connection.close()
            return Answer(number, 0, None, None, sent)
        text = found["readings"][0]["text"] if response.status == 200 else None
        return Answer(number, response.status, text, response.headers["Retry-After"])


@contextlib.contextmanager
def served(model: str, framework: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server that is ready, and its address."""
    command = [sys.executable, "-m", "ved_cli", "serve", "--port", "0", "--json", "--model", model]
    process = subprocess.Popen([*command, "--framework", framework, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        url = json.loads(process.stdout.readline())["url"]
        start = time.perf_counter()
        while not ready(url):
            if process.poll() is not None or time.perf_counter() > start + 170:
                raise SystemExit("the server did not become ready")
            time.sleep(0.1)
        yield process, url
    finally:
        process.terminate()
        process.wait()


def ready(url: str) -> bool:
    """Whether it says so."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=5)
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    return False


def load(url: str, clients: int, images: int) -> tuple[list[Answer], float]:
    """Answers to so many images by so many clients, each sending one after the other; and images a second."""
    own = threading.local()

    def read(number: int) -> Answer:
        if not hasattr(own, "client"):
            own.client = Client(url)
        return own.client.read(number)

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(read, range(images)))
    return answers, images / (time.perf_counter() - start)


def wrong(answers: Sequence[Answer], known: bool) -> int:
    """Answers that are lost, or not what they should be."""
    texts = len(TEXTS)
    return sum(
        answer.status not in (200, 429)
        or (answer.status == 429 and not answer.retry)
        or (known and answer.status == 200 and answer.text != TEXTS[answer.number % texts])
        for answer in answers
    )


def throughput(model: str, framework: str, images: int, clients: int, options: Sequence[str], known: bool) -> int:
    """Print both rates and their ratio; returns how many answers were wrong."""
    with served(model, framework, *options) as (_, url):
        load(url, clients, clients)
        pairs, lost = [], 0
        for _ in range(ROUNDS):
            rates = []
            for count in (1, clients):
                answers, rate = load(url, count, images)
                rates.append(rate)
                lost += wrong(answers, known) + sum(answer.status != 200 for answer in answers)
            pairs.append(rates)
    ratios = sorted(many / one for one, many in pairs)
    one, many = (statistics.median(rates) for rates in zip(*pairs, strict=True))
    spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    print(f"{framework:<6} one client {one:7.1f} images/s  {clients} clients {many:7.1f} images/s  ratio {spread}")
    return lost


def overload(model: str, framework: str, known: bool) -> int:
    """Many more clients than places; returns how many answers were wrong."""
    with served(model, framework, "--max-waiting", "8", "--max-images", "8") as (process, url):
        answers, rate = load(url, 48, 240)
        lost = wrong(answers, known)
        counts = Counter(answer.status for answer in answers)
        afterwards, _ = load(url, 1, 4)
        lost += sum(answer.status != 200 for answer in afterwards)
        print(f"{framework:<6} 48 clients, 8 places: {dict(counts)}, {lost} lost, {rate:.0f} answers/s")
        process.terminate()
        status = process.wait()
        lost += status != 0
    return lost


def ending(model: str, framework: str, known: bool) -> int:
    """SIGTERM while clients send; returns how many requests were lost: taken, and not answered."""
    with served(model, framework) as (process, url), ThreadPoolExecutor(1) as pool:
        running = pool.submit(load, url, 8, 200)
        time.sleep(0.5)
        start = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        status = process.wait()
        seconds = time.perf_counter() - start
        answers, _ = running.result()
    counts = Counter(answer.status for answer in answers)
    good = [answer for answer in answers if answer.status]
    lost = wrong(good, known) + (status != 0)
    # A connection that was kept may be closed just as the next request is written: no server has taken that one.
    print(
        f"{framework:<6} SIGTERM under load: {dict(counts)} (0: refused), {lost} lost, status {status}, {seconds:.2f} s"
    )
    return lost


def small(folder: Path) -> Path:
    """A checkpoint of SMALL with random parameters and the small reader's tokenizer."""
    from ved_core.configs import VisionEncoderDecoderConfig
    from ved_flax import FlaxVisionEncoderDecoderModel

    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (READER / name).is_file():
            shutil.copy(READER / name, folder)
    processor = json.loads((READER / "preprocessor_config.json").read_text())
    processor["size"] = {"height": 224, "width": 224}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    known = json.loads((READER / "config.json").read_text())
    decoder = SMALL["decoder"] | {"vocab_size": known["decoder"]["vocab_size"]}
    config = {"model_type": "vision-encoder-decoder", "encoder": SMALL["encoder"], "decoder": decoder}
    config |= {name: known[name] for name in ("decoder_start_token_id", "pad_token_id")}
    model = FlaxVisionEncoderDecoderModel(VisionEncoderDecoderConfig.from_dict(config))
    model.save_pretrained(folder)
    return folder


def main() -> int:
    """Measure; returns 1 where anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frameworks", nargs="+", default=["flax", "torch"])
    parser.add_argument("--only", choices=("reader", "small", "overload", "ending"), help="one of the measurements")
    options = parser.parse_args()
    lost = 0
    for framework in options.frameworks:
        if options.only in (None, "reader"):
            lost += throughput(str(READER), framework, 200, 16, (), True)
        if options.only in (None, "small"):
            with tempfile.TemporaryDirectory() as name:
                model = str(small(Path(name)))
                lost += throughput(model, framework, 24, 8, ("--max-new-tokens", "16"), False)
        if options.only in (None, "overload"):
            lost += overload(str(READER), framework, True)
        if options.only in (None, "ending"):
            lost += ending(str(READER), framework, True)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
