"""What a training job shows, and that a job that goes on shows nothing twice."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ved_core.errors import ConfigError

pytest.importorskip("matplotlib")
pytest.importorskip("tensorboardX")

from ved_flax.train.evaluation import Evaluation, Prediction
from ved_flax.train.reporters.curves import curves, smoothed
from ved_flax.train.reporters.history import History
from ved_flax.train.reporters.pictures import Pictures
from ved_flax.train.reporters.profiler import ProfilerTrace
from ved_flax.train.reporters.progress import Progress, summary
from ved_flax.train.reporters.sheet import MISSED, WRONG, marked, sheet
from ved_flax.train.reporters.speed import Speed, peak_flops, step_flops
from ved_flax.train.reporters.standard import ReportConfig, standard_reporters

METRICS = {"loss": 1.5, "learning_rate": 3e-5, "images_per_second": 1234.5, "tokens_per_second": 56_789.0, "mfu": 0.417}


def evaluation(pairs: list[tuple[str, str]] = [("one", "one")], **metrics: float) -> Evaluation:  # noqa: B006
    found = [Prediction(f"{i}.png", (truth,), text, 0.5) for i, (text, truth) in enumerate(pairs)]
    pictures = [(np.full((20, 60, 3), 200, np.uint8), each) for each in found]
    return Evaluation(metrics or {"cer": 0.25}, found, 0, pictures)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


# History -------------------------------------------------------------------------------------------------------------

LOG = """{"step": 1, "loss": 4.0, "learning_rate": 0.5}
{"step": 1, "evaluation": {"cer": 0.9, "bleu": "nan"}}
{"step": 2, "loss": "nan", "images": 8}
{"step": 2, "los
[1]
{"step": 2, "loss": 3.0}
{"step": 3, "evaluation": {"cer": 0.7}}
{"step": 3, "evaluation": {"cer": 0.6}}
{"step": 4, "loss": 1.0}
"""


def test_the_history_of_a_log_has_each_step_once_up_to_the_restored_one(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(LOG)
    history = History.read(tmp_path / "metrics.jsonl", until=3)
    history.add(3, {"loss": 2.0})
    history.add(3, {"loss": 7.0})
    history.evaluated(4, {"cer": 0.5})
    assert [x.tolist() for x in history.series("loss")] == [[1, 2, 3], [4.0, pytest.approx(math.nan, nan_ok=True), 2.0]]
    assert history.series("learning_rate")[1].tolist()[0] == 0.5
    assert [x.tolist() for x in history.metric("cer")] == [[1, 3, 4], [0.9, 0.6, 0.5]]
    assert np.isnan(history.metric("bleu")[1]).all()
    assert not History.read(tmp_path / "missing.jsonl", until=9).steps


# Progress and speed --------------------------------------------------------------------------------------------------


def test_summary() -> None:
    assert summary(METRICS) == "loss 1.5000  lr 3.00e-05  img/s 1.2k  tok/s 56.8k  MFU 41.7%"
    assert summary({"images_per_second": 3.21}) == "img/s 3.2  MFU -"
    assert summary({"loss": math.nan, "other": 1.0}) == "loss nan"


def test_progress_on_a_terminal() -> None:
    file = Terminal()
    progress = Progress(100, step=40, file=file)
    progress.on_step(41, METRICS)
    progress.on_evaluation(41, evaluation(cer=0.125))
    progress.on_step(100, METRICS)
    progress.close()
    shown = file.getvalue()
    assert "40/100" in shown
    assert "step 41: cer 0.125  samples 1  bad_samples 0\n" in shown
    assert "100/100" in shown.splitlines()[-1]
    assert "loss 1.5000" in shown


def test_progress_in_a_log_file_is_a_line_now_and_then() -> None:
    now = 0.0
    file = io.StringIO()
    progress = Progress(100, step=40, file=file, clock=lambda: now)
    for step in range(41, 101):
        now += 1.0
        progress.on_step(step, {"loss": 1.0})
    progress.on_evaluation(100, evaluation(cer=0.125))
    progress.close()
    assert file.getvalue().splitlines() == [
        "step 41/100  00:59 left  loss 1.0000",
        "step 56/100  00:44 left  loss 1.0000",
        "step 71/100  00:29 left  loss 1.0000",
        "step 86/100  00:14 left  loss 1.0000",
        "step 100/100  00:00 left  loss 1.0000",
        "step 100: cer 0.125  samples 1  bad_samples 0",
    ]


class Told:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.evaluations: list[int] = []
        self.closed = False

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        self.steps.append(metrics)

    def on_evaluation(self, step: int, results: Any) -> None:
        self.evaluations.append(step)

    def close(self) -> None:
        self.closed = True


def test_speed_leaves_out_compilation_and_evaluations() -> None:
    now = 0.0
    told = Told()
    speed = Speed([told], flops=lambda: 15.0, peak=100.0, clock=lambda: now)

    def step(number: int, seconds: float) -> dict[str, float]:
        nonlocal now
        now += seconds
        speed.on_step(number, {"loss": 1.0, "images": 8, "tokens": 40})
        return told.steps[-1]

    def evaluate(number: int) -> None:
        nonlocal now
        now += 1000
        speed.on_evaluation(number, {})

    assert step(2, 100.0) == {"loss": 1.0, "images": 8, "tokens": 40}
    rates = {"images_per_second": 16, "tokens_per_second": 80, "mfu": 0.6}
    assert step(4, 0.5) == pytest.approx({"loss": 1.0, "images": 8, "tokens": 40} | rates)
    evaluate(4)
    assert step(6, 0.5)["images_per_second"] == pytest.approx(16)
    evaluate(7)  # between two reports
    assert step(8, 0.5)["images_per_second"] == pytest.approx(16)
    assert step(10, 2.5)["images_per_second"] == pytest.approx(3 * 8 / 3.5)
    assert told.evaluations == [4, 7]
    speed.close()
    assert told.closed
    for options in ({"flops": 1.0}, {"flops": lambda: None, "peak": 1.0}):
        speed = Speed([told], clock=lambda: now, **options)
        step(1, 1.0)
        assert "mfu" not in step(2, 1.0)


def test_flops_of_a_compiled_step_and_peaks_of_devices() -> None:
    import jax

    class Device:
        def __init__(self, kind: str) -> None:
            self.device_kind = kind

    compiled = jax.jit(lambda x: x @ x).lower(np.zeros((32, 32), np.float32)).compile()
    assert step_flops(compiled) == pytest.approx(2 * 32**3, rel=0.05)
    assert peak_flops(Device("TPU v5 lite")) == 197e12
    assert peak_flops(Device("TPU v5p")) == peak_flops(Device("TPU v5")) == 459e12
    assert peak_flops(Device("NVIDIA A100-SXM4-80GB")) == peak_flops(Device("NVIDIA A100 80GB PCIe")) == 312e12
    assert (peak_flops(Device("TPU v4")), peak_flops(Device("TPU v4 lite"))) == (275e12, 138e12)
    assert (peak_flops(Device("NVIDIA L4")), peak_flops(Device("NVIDIA L40S"))) == (121e12, 362e12)
    assert peak_flops(Device("NVIDIA L40")) is None  # begins like another's name
    assert peak_flops(jax.devices()[0]) is None


# TensorBoard and profiler --------------------------------------------------------------------------------------------


def events_in(folder: Path) -> list[Any]:
    """Those of its only event file."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = folder.iterdir()
    content, at, events = path.read_bytes(), 0, []
    while at < len(content):  # length, checksum, event, checksum
        size = int.from_bytes(content[at : at + 8], "little")
        events.append(Event.FromString(content[at + 12 : at + 12 + size]))
        at += size + 16
    return events


@pytest.mark.parametrize(("step", "first"), [(6, 7), (0, 0)])
def test_tensorboard_drops_what_a_job_does_again(tmp_path: Path, step: int, first: int) -> None:
    from ved_flax.train.reporters.tensorboard import TensorBoard

    TensorBoard(tmp_path, step).close()
    assert [event.step for event in events_in(tmp_path) if event.session_log.status == 1] == [first]


def test_tensorboard(tmp_path: Path) -> None:
    from ved_flax.train.reporters.tensorboard import TensorBoard

    board = TensorBoard(tmp_path, step=6)
    board.on_step(7, {"loss": 0.5})
    board.on_evaluation(7, evaluation(cer=0.25))
    board.close()
    events = events_in(tmp_path)
    values = {value.tag: (event.step, value) for event in events for value in event.summary.value}
    names = ("cer", "samples", "bad_samples", "pictures")
    assert {name: step for name, (step, _) in values.items()} == dict.fromkeys(
        ("train/loss", *(f"evaluation/{name}" for name in names)), 7
    )
    assert values["train/loss"][1].simple_value == 0.5
    assert values["evaluation/pictures"][1].image.width > 1000


@pytest.mark.parametrize(
    ("first", "last", "step", "every", "expected"),
    [
        (3, 4, 0, 1, [(2, "start"), (4, "stop")]),
        (1, 1, 0, 1, [(0, "start"), (1, "stop")]),
        (3, 5, 3, 1, [(3, "start"), (5, "stop")]),  # what is left of it
        (2, 3, 3, 1, []),
        (5, 9, 0, 1, [(4, "start"), (None, "stop")]),  # the job ends first
        (3, 3, 0, 2, [(2, "start"), (4, "stop")]),
        (4, 5, 0, 3, [(3, "start"), (6, "stop")]),
    ],
)
def test_the_steps_that_are_traced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int, last: int, step: int, every: int, expected: list[Any]
) -> None:
    import jax

    calls: list[Any] = []
    now: int | None = step
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append((now, "start")))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append((now, "stop")))
    trace = ProfilerTrace(tmp_path, first, last, step, every)
    for now in range(step + every, 7, every):
        trace.on_step(now, {})
    now = None
    trace.close()
    assert calls == expected


# Pictures ------------------------------------------------------------------------------------------------------------


def pixels(image: Image.Image, color: str) -> int:
    from PIL import ImageColor

    return int((np.asarray(image) == ImageColor.getrgb(color)).all(axis=-1).sum())


def test_marked_letters() -> None:
    read, truth = marked("abXd", "abcde")
    assert [letter for letter, odd in read if odd] == ["X"]
    assert [letter for letter, odd in truth if odd] == ["c", "e"]


def test_the_sheet_shows_what_is_wrong() -> None:
    right = sheet(1, evaluation([("one $x^2$", "one $x^2$")] * 3))
    wrong = sheet(1, evaluation([("onE", "one"), ("tw", "two"), ("", "three")]))
    assert (right.mode, right.width) == ("RGB", 1320)
    assert (pixels(right, WRONG), pixels(right, MISSED)) == (0, 0)
    assert pixels(wrong, WRONG) > 5
    assert pixels(wrong, MISSED) > 500


@pytest.mark.parametrize("text", ["", "\n\t\0", "字" * 300, "word " * 500, "\u202egnp", "$\\frac{1", "😀"])
def test_the_sheet_takes_any_text(text: str) -> None:
    page = sheet(10**9, evaluation([(text, "one"), ("one", text)]))
    assert page.height < 1000


def test_the_sheet_takes_any_shape() -> None:
    for shape in ((1, 400, 3), (400, 1, 3), (8, 8, 3), (3000, 2000, 3)):
        found = Prediction("x" * 500, ("a", "b"), "b", 1.0)
        page = sheet(1, Evaluation({}, [found], 0, [(np.zeros(shape, np.uint8), found)]))
        assert page.height < 1000


def test_smoothing_looks_backward_and_over_gaps() -> None:
    values = np.array([4.0, np.nan, 2.0, 6.0, np.nan, np.nan])
    assert smoothed(values, 2).tolist()[:5] == [4.0, 4.0, 2.0, 4.0, 6.0]
    assert math.isnan(smoothed(values, 2)[5])
    assert smoothed(values[:1], 5).tolist() == [4.0]


def history(steps: dict[int, float], **metrics: dict[int, float]) -> History:
    made = History()
    for step, loss in steps.items():
        made.add(step, {"loss": loss, "learning_rate": 0.0})
    for name, values in metrics.items():
        for step, value in values.items():
            made.evaluated(step, made.evaluations.get(step, {}) | {name: value})
    return made


@pytest.mark.parametrize(
    "recorded",
    [
        History(),
        history({1: 2.0}),
        history({1: math.nan}, cer={0: 0.0}, bleu={0: math.nan}),
        history({step: 100 / step for step in range(1, 40)}, cer={step: 1 / step for step in range(1, 50)}),
        history(dict.fromkeys(range(5000), 0.0), cider={7: 0.0, 8: 0.0}, other={3: 1.0}),
    ],
)
def test_curves_of_any_history(recorded: History, recwarn: pytest.WarningsRecorder) -> None:
    picture = curves(recorded)
    assert picture.width == 1430
    assert (picture.height > 700) == bool(recorded.evaluations)
    assert not recwarn.list


def test_curves_leave_no_global_style() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    curves(history({1: 2.0}))
    assert dict(matplotlib.rcParams) == before


def test_pictures_at_each_evaluation_go_on_from_the_log(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(LOG)
    pictures = Pictures(tmp_path / "pictures", tmp_path / "metrics.jsonl", step=2)
    pictures.on_evaluation(3, {"cer": 0.5})
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["curves.png"]
    for step in (4, 5):
        pictures.on_step(step, {"loss": 1.0})
        pictures.on_evaluation(step, evaluation())
    names = ["curves.png", "samples-00000004.png", "samples-00000005.png"]
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == names
    assert all(Image.open(tmp_path / "pictures" / name).format == "PNG" for name in names)
    assert list(pictures.history.steps) == [1, 2, 4, 5]
    assert list(pictures.history.evaluations) == [1, 3, 4, 5]


# All together --------------------------------------------------------------------------------------------------------


def test_standard_reporters(tmp_path: Path) -> None:
    everything = standard_reporters(ReportConfig(profile_from=100), tmp_path, total=10, step=2)
    kinds = [type(reporter).__name__ for reporter in everything[0].reporters]
    assert kinds == ["Progress", "TensorBoard", "Pictures", "ProfilerTrace"]
    for reporter in everything:
        reporter.on_step(3, METRICS)
        reporter.on_evaluation(3, evaluation())
        reporter.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "tensorboard"]
    nothing = ReportConfig(progress=False, tensorboard=False, pictures=False)
    assert standard_reporters(nothing, tmp_path, total=1)[0].reporters == []


@pytest.mark.parametrize(
    "values", [{"progress": 1}, {"profile_from": 0}, {"profile_to": 3}, {"profile_from": 3, "profile_to": 2}]
)
def test_report_options_are_checked(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"report\."):
        ReportConfig(**values)
