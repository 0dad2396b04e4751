"""`TrainConfig`: everything that a training run is told."""

import dataclasses
from typing import Any, Literal

from ved_core.configs import fields
from ved_core.configs.fields import checked
from ved_flax.train.data.config import DataConfig
from ved_flax.train.metrics import LOWER_IS_BETTER, METRICS
from ved_flax.train.reporters.standard import ReportConfig
from ved_flax.train.settings import Section


def share(default: float | None) -> Any:
    """A number from 0 to 1, 1 left out; or None."""
    return checked(default, lambda v: None if v is None or 0 <= v < 1 else "a number from 0 to 1, 1 left out, or null")


def positive_or_none(default: float | None) -> Any:
    """A number above 0, or None."""
    return checked(default, lambda v: None if v is None or v > 0 else "a number above 0, or null")


def count(default: int) -> Any:
    """A whole number of at least 0."""
    return checked(default, lambda v: None if v >= 0 else "a whole number of at least 0")


@dataclasses.dataclass(kw_only=True)
class ModelConfig(Section):
    """Section `model`: what is trained. Give `pretrained`, or `encoder` and `decoder`, or `config`."""

    pretrained: str | None = None
    """Checkpoint folder, or name on the hub, of a whole model to go on with."""
    encoder: str | None = None
    """Checkpoint of which the encoder is taken; `decoder` is needed too."""
    decoder: str | None = None
    """Checkpoint of which the decoder is taken; what it lacks, as cross-attention, is newly initialised."""
    config: str | None = None
    """A config.json, or its folder, for a model that is newly initialised as a whole."""
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of the model's config to change, as {decoder_start_token_id: 0, encoder: {hidden_dropout_prob: 0.1}}."""
    processor: str | None = None
    """Checkpoint of which image processor and tokenizer are taken, if not the model's (or its decoder's) own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What layers compute in; parameters are kept in float32 all the same."""
    attn_implementation: Literal["auto", "xla", "cudnn", "flash"] = "auto"
    """How attention is computed: auto, xla, cudnn or flash."""
    checkpoint_activations: bool = False
    """Compute each layer's activations again in the backward pass instead of keeping them."""
    checkpoint_policy: str | None = None
    """What is kept all the same: a name of jax.checkpoint_policies, as dots_with_no_batch_dims_saveable."""
    scan_layers: bool = False
    """Compile equal layers once, as a loop; refused where a model's layers differ."""
    interpolate_pos_encoding: bool = False
    """Take images of another size than the checkpoint's, its positions resized."""


@dataclasses.dataclass(kw_only=True)
class LossConfig(Section):
    """Section `loss`: token-weighted cross-entropy."""

    label_smoothing: float = share(0.0)
    """Share of the target that is spread over the whole vocabulary."""
    z_loss: float = fields.non_negative(0.0)
    """Weight of the squared logarithm of the scores' sum of exponentials."""
    not_finite: Literal["stop", "skip"] = "stop"
    """What a NaN or infinite loss or gradient does: stop the run, or pass the batch by. Neither touches the model."""


@dataclasses.dataclass(kw_only=True)
class OptimizerConfig(Section):
    """Section `optimizer`."""

    name: str = "adamw"
    """Any optimizer of optax."""
    learning_rate: float = fields.positive(5e-5)
    """The highest, behind the warm-up."""
    weight_decay: float | None = None
    """Of matrices and embeddings; none of biases, norms and other vectors. Null: 0.01 for adamw, else optax's own."""
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The optimizer's other arguments, as {b2: 0.98}."""
    clip_norm: float | None = positive_or_none(1.0)
    """Largest norm of the gradient of all parameters together; null for any."""
    encoder_multiplier: float = fields.non_negative(1.0)
    """Of the learning rate of the encoder."""
    decoder_multiplier: float = fields.non_negative(1.0)
    """Of the learning rate of the decoder and the projection to it."""
    new_multiplier: float = fields.non_negative(1.0)
    """Of the learning rate of what joining two checkpoints newly initialised, instead of the part's own."""
    freeze_encoder: bool = False
    """Leave the encoder as it is."""
    freeze: list[str] = dataclasses.field(default_factory=list)
    """Regular expressions: parameters in whose name one is found stay as they are."""


@dataclasses.dataclass(kw_only=True)
class ScheduleConfig(Section):
    """Section `schedule`: the learning rate over the steps."""

    kind: Literal["cosine", "linear", "constant"] = "cosine"
    """How it falls from its highest value to its last one."""
    warmup_steps: int = count(0)
    """Steps over which it rises from 0."""
    final: float = fields.probability(0.0)
    """Its last value, as a share of the highest; of cosine and linear."""


@dataclasses.dataclass(kw_only=True)
class AverageConfig(Section):
    """Section `average`: the exponential moving average of the parameters."""

    decay: float | None = share(None)
    """Share of the old average that a step leaves, as 0.999; null for no average."""
    use: bool = True
    """Evaluate and export the average rather than the parameters."""


@dataclasses.dataclass(kw_only=True)
class ParallelConfig(Section):
    """Section `parallel`: how a step is spread over devices."""

    mode: Literal["jit", "pmap"] = "jit"
    """jit over a mesh, or pmap, where every device holds everything and computes its share of the batch."""
    data: int = checked(-1, lambda v: None if v == -1 or v >= 1 else "a whole number of at least 1, or -1")
    """Devices that share the batch, each holding the parameters (or its part of them); -1: all that are left."""
    fsdp: int = fields.size(1)
    """Devices that share the batch, and the storage of parameters and optimizer."""
    model: int = fields.size(1)
    """Devices that share each matrix product, by heads, hidden width and vocabulary."""
    coordinator: str | None = None
    """host:port of process 0 of several; null: found out on Cloud TPU and SLURM, one process elsewhere."""
    processes: int | None = None
    """How many, where `coordinator` is given."""
    process: int | None = None
    """Which of them this is, from 0, where `coordinator` is given."""


@dataclasses.dataclass(kw_only=True)
class CheckpointConfig(Section):
    """Section `checkpoint`: folders that a run is taken up from, in `output`/checkpoints."""

    every: int = fields.size(1000)
    """Steps from one to the next. One is written at the end and when interrupted too."""
    keep: int = fields.size(2)
    """How many of the latest to keep."""
    keep_period: int | None = fields.size(None, optional=True)
    """Keep those of every so many steps for ever."""
    asynchronous: bool = True
    """Write while training goes on."""
    strict: bool = False
    """Stop where the latest is damaged, instead of going back to the one before."""
    export_every: int | None = fields.size(None, optional=True)
    """Steps from one Hugging Face folder in `output`/exports to the next; `output`/model is written at the end. A file
    `output`/export asks for one at once."""


@dataclasses.dataclass(kw_only=True)
class EvaluationConfig(Section):
    """Section `evaluation`."""

    every: int | None = fields.size(None, optional=True)
    """Steps from one to the next; null for none. It needs data.evaluation_source."""
    at_start: bool = False
    """Evaluate what a new run begins with, too, as step 0."""
    batch_size: int | None = fields.size(None, optional=True)
    """Images at a time, over all processes; null: as in training."""
    metrics: list[str] = dataclasses.field(default_factory=lambda: ["exact_match", "cer"])
    """Of exact_match, cer, wer, bleu, chrf, rouge_l and cider."""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Options of generate, as {num_beams: 4, max_new_tokens: 64}."""
    pictures: int = count(12)
    """Images on the sheet of samples."""
    metric: str | None = None
    """The metric by which the best checkpoint is kept beside the latest, as cer; null to keep none for it."""
    mode: Literal["min", "max"] | None = None
    """Whether a smaller or a larger value of it is better; null: a smaller one of cer and wer, a larger one of the
    other `metrics`."""

    @property
    def smaller_is_better(self) -> bool:
        """Of `metric`; one that only a caller's own evaluation knows counts as a loss."""
        if self.mode is not None:
            return self.mode == "min"
        return self.metric in LOWER_IS_BETTER or self.metric not in METRICS


@dataclasses.dataclass(kw_only=True)
class LoggingConfig(Section):
    """Section `logging`."""

    every: int = fields.size(1)
    """Steps from one record of metrics to the next."""
    sample_ids: bool = False
    """Write the ids of each step's examples to `output`/samples.jsonl (samples.P.jsonl of process P of several)."""
    compilation_cache: str | None = "~/.cache/ved/jax"
    """Folder in which compiled programs are kept for the next start; null for none."""


@dataclasses.dataclass(kw_only=True)
class TrainConfig(Section):
    """A training run."""

    output: str = "run"
    """Folder of everything that the run writes. The same command again goes on from what is there."""
    steps: int = fields.size(1000)
    """Updates of the parameters."""
    seed: int = count(0)
    """Of new parameters and of dropout."""
    batch_size: int = fields.size(16)
    """Images of an update, over all processes, devices and parts."""
    accumulation: int = fields.size(1)
    """Parts into which the batch is cut, to be computed one after another: less memory, the same update."""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    average: AverageConfig = dataclasses.field(default_factory=AverageConfig)
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    logging: LoggingConfig = dataclasses.field(default_factory=LoggingConfig)
    report: ReportConfig = dataclasses.field(default_factory=ReportConfig)
