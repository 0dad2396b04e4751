"""`ved demo`: a local web page to try a model."""

import argparse
import json
import os
import signal
import threading
from typing import Any

from ved_cli.needs import needed, present
from ved_cli.read import FRAMEWORKS, framework
from ved_core.bundled import READER
from ved_core.exit_status import Exit


def add_parser(commands: Any) -> None:
    """Add `demo` to the subcommands."""
    parser = commands.add_parser(
        "demo",
        help="open a page to try a model",
        description="Open a local web page: drop an image or draw, choose model, framework and decoding, and see the "
        "text come in, its alternatives, where the decoder looked, and how long it took. Ctrl-C ends it.",
    )
    parser.add_argument(
        "--model",
        action="append",
        metavar="FOLDER_OR_NAME",
        help="checkpoint folder or hub name to choose from, several times for several (default: the bundled reader)",
    )
    parser.add_argument("--framework", choices=FRAMEWORKS, help="only this one (default: all that are installed)")
    parser.add_argument("--host", default="127.0.0.1", metavar="NAME", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, metavar="N", help="port to listen on (default: the first free from 7860)")
    parser.add_argument("--no-browser", action="store_true", help="print the page's address and open nothing")
    parser.add_argument("--json", action="store_true", help="print the page's address as a JSON object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Show the page until asked to stop. Raises VedError, OSError."""
    needed(("gradio", "matplotlib"), "demo-page")
    names = [framework(options)] if options.framework else installed()
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio as gr

    from ved_cli.page.layout import FONTS, make_page

    page = make_page(options.model or [str(READER)], names)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    _, url, _ = page.launch(
        server_name=options.host,
        server_port=options.port,
        inbrowser=not options.no_browser,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        theme=gr.themes.Default(font=FONTS, font_mono=["monospace"]),
        footer_links=[],
    )
    print(json.dumps({"url": url}) if options.json else f"a page to try the model: {url}", flush=True)
    stop.wait()
    page.close()
    return Exit.DONE


def installed() -> list[str]:
    """The frameworks that can be compared. Raises VedError where there is none."""
    first = framework(argparse.Namespace(framework=None))
    return [first, *(name for name, package in FRAMEWORKS.items() if name != first and present(package))]
