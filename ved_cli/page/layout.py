"""The page: what is on it, and what its button does."""

import html
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from ved_cli.page.session import STRATEGIES, Choice, Outcome, Session
from ved_core.bundled import READER
from ved_core.errors import VedError

if TYPE_CHECKING:
    from PIL.Image import Image

BUNDLED = "bundled reader of printed lines"
TITLES = {"flax": "Flax", "torch": "PyTorch"}
FONTS = ("system-ui", "sans-serif")
"""The page works without the internet: none of its fonts comes from there."""
TIMES = ["framework", "first call (ms)", "next call (ms)", "tokens", "ms a token"]


def make_page(models: Sequence[str], frameworks: Sequence[str], session: Session | None = None) -> gr.Blocks:
    """The page over these models, the first of which is chosen, and the frameworks that are installed."""
    session = session or Session()
    page = gr.Blocks(title="ved", analytics_enabled=False)
    with page:
        gr.Markdown("# ved\nReads the text in an image. Drop one or draw, and compare what decoding makes of it.")
        with gr.Row():
            with gr.Column(scale=2):
                with gr.Tabs():
                    with gr.Tab("Image", id="image") as image_tab:
                        image = gr.Image(type="pil", sources=["upload", "clipboard"], label="Image", height=300)
                    with gr.Tab("Draw", id="draw") as draw_tab:
                        drawing = gr.Sketchpad(
                            type="pil",
                            label="Drawing: take the brush on the left",
                            canvas_size=(384, 384),
                            height=420,
                            brush=gr.Brush(default_size=18, colors=["#000000"], color_mode="fixed"),
                            layers=False,
                        )
                source = gr.State("image")
                model = gr.Dropdown(
                    [(BUNDLED if model == str(READER) else model, model) for model in models],
                    value=models[0],
                    allow_custom_value=True,
                    label="Model",
                    info="Checkpoint folder, or name on the Hugging Face hub",
                )
                names = [TITLES[name] for name in frameworks]
                framework = gr.CheckboxGroup(names, value=names, label="Framework")
                strategy = gr.Radio(list(STRATEGIES), value="greedy", label="Decoding")
                beams = gr.Slider(2, 8, value=4, step=1, label="Beams", visible=False)
                with gr.Row(visible=False) as sampling:
                    temperature = gr.Slider(0.1, 4, value=1, step=0.1, label="Temperature")
                    top_p = gr.Slider(0.05, 1, value=1, step=0.05, label="Top p")
                    seed = gr.Number(0, precision=0, minimum=0, label="Seed")
                with gr.Accordion("More", open=False):
                    longest = gr.Number(
                        None, precision=0, minimum=1, label="Most new tokens", info="Empty: as the model says"
                    )
                    prompt = gr.Textbox(
                        "", label="Prompt", info="What the text begins with, as a Donut model's task token"
                    )
                button = gr.Button("Read", variant="primary", elem_id="read")
            with gr.Column(scale=3):
                shown = []
                with gr.Row():
                    for name in frameworks:
                        with gr.Column():
                            text = gr.Textbox(label=TITLES[name], lines=3, elem_id=f"text-{name}", buttons=["copy"])
                            table = gr.Dataframe(
                                headers=["text", "confidence", "score"],
                                label=f"Texts of {TITLES[name]}",
                                elem_id=f"texts-{name}",
                                wrap=True,
                                interactive=False,
                            )
                            shown += [text, table]
                attention = gr.AnnotatedImage(
                    label="Where the decoder looked: point at a word", elem_id="attention", height=360
                )
                times = gr.Dataframe(headers=TIMES, label="Time", elem_id="times", interactive=False)

        def options_of(strategy: str) -> tuple[dict[str, Any], dict[str, Any]]:
            return gr.update(visible=strategy == "beam search"), gr.update(visible=strategy == "sampling")

        image_tab.select(lambda: "image", outputs=source)
        draw_tab.select(lambda: "draw", outputs=source)
        strategy.change(options_of, strategy, [beams, sampling])
        button.click(
            reader(session, frameworks, [*shown, attention, times]),
            [source, image, drawing, framework, model, strategy, beams, temperature, top_p, seed, longest, prompt],
            [*shown, attention, times],
            concurrency_limit=1,
        )
    return page


def reader(session: Session, frameworks: Sequence[str], outputs: Sequence[Any]) -> Any:
    """What the button does: a generator of the outputs' values."""

    def read(
        source: str, image: "Image | None", drawing: Any, chosen: Sequence[str], *values: Any
    ) -> Iterator[dict[Any, Any]]:
        model, strategy, beams, temperature, top_p, seed, longest, prompt = values
        picture = image if source == "image" else drawn(drawing)
        if picture is None:
            gr.Warning("There is no image yet: drop one, or take the brush and draw")
            return
        wanted = [name for name in frameworks if TITLES[name] in chosen]
        if not wanted:
            gr.Warning("No framework is chosen")
            return
        choice = Choice(model, strategy, int(beams), temperature, top_p, int(seed or 0), longest, prompt)
        *shown, attention, times = outputs
        fields = dict(zip(frameworks, zip(shown[::2], shown[1::2], strict=True), strict=True))
        yield dict.fromkeys(outputs)
        rows: list[list[Any]] = []
        try:
            for name in wanted:
                text, table = fields[name]
                for so_far in session.pieces(name, picture, choice):
                    yield {text: so_far}
                outcome = session.outcome(name, picture, choice)
                rows.append(row(TITLES[name], outcome))
                update: dict[Any, Any] = {text: outcome.texts[0][0], table: texts(outcome), times: rows}
                if name == wanted[0]:
                    update[attention] = outcome.attention
                yield update
        except VedError as error:
            gr.Warning(html.escape(str(error)), duration=None)

    return read


def drawn(drawing: Any) -> "Image | None":
    """What was drawn, or None where nothing was."""
    if not drawing or drawing.get("composite") is None:
        return None
    layers = drawing.get("layers") or []
    empty = all(layer.getextrema()[-1][1] == 0 for layer in layers) if layers else True
    return None if empty and drawing.get("background") is None else drawing["composite"]


def texts(outcome: Outcome) -> list[list[Any]]:
    """The rows of the table of texts."""
    return [
        [text, f"{confidence:.3f}", "" if score is None else f"{score:.3f}"]
        for text, confidence, score in outcome.texts
    ]


def row(title: str, outcome: Outcome) -> list[Any]:
    """A row of the table of times."""
    again = outcome.again * 1000
    each = again / outcome.tokens if outcome.tokens else 0.0
    return [title, f"{outcome.first * 1000:.0f}", f"{again:.1f}", outcome.tokens, f"{each:.1f}"]
