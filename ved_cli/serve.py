"""`ved serve`: a model behind HTTP."""

import argparse
import dataclasses
import importlib
import json
import logging
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from ved_cli import decoding
from ved_cli.needs import needed
from ved_cli.read import FRAMEWORKS, framework, positive
from ved_core.bundled import READER
from ved_core.errors import VedError
from ved_core.exit_status import Exit

PACKAGES = ("fastapi", "uvicorn", "multipart", "prometheus_client")
EPILOG = """requests:
  curl --data-binary @page.png -H "Content-Type: image/png" http://127.0.0.1:8000/read
  curl -F image=@a.png -F image=@b.png -F max_new_tokens=20 http://127.0.0.1:8000/read
  curl --json '{"images": ["BASE64"], "options": {"max_new_tokens": 20}}' http://127.0.0.1:8000/read
  curl -N --data-binary @page.png -H "Content-Type: image/png" http://127.0.0.1:8000/stream

GET / lists the options; /health, /ready and /metrics are for what watches over it. Decoding options given here are
compiled at the start. A request may change their values and ask for shorter texts, and is refused what would take
another program. SIGTERM and SIGINT end the server when all that it has taken is answered."""


def add_parser(commands: Any) -> None:
    """Add `serve` to the subcommands."""
    parser = commands.add_parser(
        "serve",
        help="answer images over HTTP",
        description="Answer POSTed images with JSON. Images that arrive together are read in one compiled call.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default=str(READER), metavar="FOLDER_OR_NAME", help="checkpoint folder or hub name")
    parser.add_argument("--framework", choices=FRAMEWORKS, help="what computes (default: flax where it is installed)")
    parser.add_argument("--host", default="127.0.0.1", metavar="NAME", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="0 for any that is free (default: 8000)")
    limits = parser.add_argument_group("limits")
    for flag, default, text in (
        ("--batch-size", 8, "most images of a compiled call"),
        ("--max-waiting", 64, "images that may wait; beyond, requests are answered with 429"),
        ("--max-bytes", 20_000_000, "largest body of a request"),
        ("--max-pixels", 25_000_000, "most pixels of an image"),
    ):
        limits.add_argument(flag, type=positive, default=default, metavar="N", help=f"{text} (default: {default})")
    limits.add_argument(
        "--max-images", type=positive, metavar="N", help="most images of a request (default: 16, or --max-waiting)"
    )
    limits.add_argument(
        "--linger", type=float, default=5.0, metavar="MS", help="how long an idle server waits for company (default: 5)"
    )
    limits.add_argument(
        "--drain",
        type=positive,
        default=30,
        metavar="S",
        help="seconds to answer the rest at the end (default: 30)",
    )
    parser.add_argument("--json", action="store_true", help="print what is served as one JSON object")
    parser.add_argument("--verbose", action="store_true", help="log every request")
    decoding.add_arguments(parser, seed=False)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve until asked to stop. Raises VedError."""
    needed(PACKAGES, "serve")
    import uvicorn

    from ved_cli.serving.app import make_app
    from ved_cli.serving.engine import Engine
    from ved_cli.serving.settings import Settings

    logging.basicConfig(format="%(name)s: %(message)s", level=logging.WARNING)
    logging.getLogger("ved").setLevel(logging.INFO)
    names = {field.name for field in dataclasses.fields(Settings)} & vars(options).keys()
    if options.max_images is None:
        options.max_images = min(Settings.max_images, options.max_waiting)
    settings = Settings(**{name: getattr(options, name) for name in names} | {"linger": options.linger / 1000})
    with listening(options.host, options.port) as listener:
        name = framework(options)
        pipeline = importlib.import_module(f"ved_{name}").ImageToText.from_pretrained(options.model)
        engine = Engine(pipeline, decoding.given(options), settings)
        host, port = listener.getsockname()[:2]
        # Of a folder only its name: where it lies is nothing for those who ask over the network.
        model = Path(options.model).name if Path(options.model).is_dir() else options.model
        about = {"model": model, "framework": name, "url": f"http://{host}:{port}"}
        failed = False

        def stop() -> None:
            nonlocal failed
            failed = server.should_exit = True

        app = make_app(engine, about, stop)
        config = uvicorn.Config(
            app,
            log_level="info" if options.verbose else "warning",
            timeout_graceful_shutdown=options.drain,
            server_header=False,
        )
        server = uvicorn.Server(config)

        def end(*_: object) -> None:
            server.should_exit = True

        # uvicorn has handlers of its own while it runs. These are for what comes before them, and for the signal that
        # ended it, which it raises once more when it is done.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, end)
        print(json.dumps(about) if options.json else f"serving {model} ({name}) on {about['url']}", flush=True)
        server.run(sockets=[listener])
    if failed:
        print("ved: the model could not be made ready", file=sys.stderr)
    return Exit.NOTHING_DONE if failed else Exit.DONE


def listening(host: str, port: int) -> socket.socket:
    """A socket for an address. Raises VedError where it cannot be had."""
    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise VedError(f"cannot listen on {host}, port {port}: {error}; give another --port or --host") from error
