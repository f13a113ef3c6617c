"""Forms of the files that an evaluation writes, by which they are checked when they are read."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, field

from advect.core.records import OpenRecord

Step = Annotated[int, Meta(ge=0, le=10**15)]
Count = Annotated[int, Meta(ge=0, le=10**15)]
Interval = tuple[float, float]


class MetricRecord(OpenRecord):
    """A metric of a point: mean and deviation over the seeds, interval over the rows."""

    mean: float
    std: float | None = None
    interval: Interval | None = None


class PointRecord(OpenRecord):
    """A sampler's numbers."""

    solver: str
    grid: str | None
    steps: int | None
    diffusion: float | str | None
    nfe: float
    seconds: float
    metrics: dict[str, MetricRecord]


class FloorRecord(OpenRecord):
    """The numbers of real training rows."""

    samples: Count
    metrics: dict[str, float]
    intervals: dict[str, Interval] = field(default_factory=dict)


class FeaturesRecord(OpenRecord):
    """What the features are called."""

    name: str


class ProtocolRecord(OpenRecord):
    """What results must have in common to be compared."""

    samples: Count
    reference: Count
    split: str
    features: FeaturesRecord
    guidance: float
    seeds: list[int]


class SubjectRecord(OpenRecord):
    """Whose numbers these are."""

    run: str
    checkpoint: str


class StraightnessRecord(OpenRecord):
    """Straightness of the paths."""

    value: float
    relative: float


class BitsRecord(OpenRecord):
    """Bits per dimension of held-out rows."""

    mean: float
    standard_error: float
    samples: Count


Numbers = list[float]


class CalibrationCurves(OpenRecord):
    """Distribution functions of ranks and of central levels, a line a column, with their band."""

    at: Annotated[Numbers, Meta(min_length=1)]
    low: Numbers
    high: Numbers
    ranks: list[Numbers]
    central: list[Numbers]

    def __post_init__(self) -> None:
        """Raises ValueError unless all lines have the points of ``at``."""
        if {len(line) for line in (self.low, self.high, *self.ranks, *self.central)} != {len(self.at)}:
            raise ValueError("curves are not of equal length")


class CalibrationRecord(OpenRecord):
    """Calibration of draws given the conditions of held-out rows; figures are by column."""

    rows: Count
    draws: Count
    level: float
    columns: list[str]
    left_out: list[str]
    kind: str
    sentence: str
    advice: str
    by: str = ""
    coverage: Numbers = field(default_factory=list)
    coverage_error: float = 0.0
    crps: Numbers = field(default_factory=list)
    crps_error: Numbers = field(default_factory=list)
    sharpness: Numbers = field(default_factory=list)
    p_value: float | None = None
    column: Count = 0
    curves: CalibrationCurves | None = None

    def __post_init__(self) -> None:
        """Raises ValueError unless each column has its figures."""
        lines = (self.curves.ranks, self.curves.central) if self.curves else ()
        figures = (self.coverage, self.crps, self.crps_error, self.sharpness, *lines)
        if {len(of) for of in figures} != {len(self.columns)} or self.column > max(len(self.columns) - 1, 0):
            raise ValueError("figures are not those of the columns")


class FlowRecord(OpenRecord):
    """The metrics of the flow itself."""

    straightness: StraightnessRecord | None = None
    bits_per_dim: BitsRecord | None = None
    bits_per_token: BitsRecord | None = None
    calibration: CalibrationRecord | None = None


class ResultRecord(OpenRecord):
    """A result of ``advect eval``."""

    format: int
    protocol: ProtocolRecord
    subject: SubjectRecord
    made_with: dict[str, Any]
    floor: FloorRecord
    flow: FlowRecord
    points: list[PointRecord]
    left_out: dict[str, str] = field(default_factory=dict)


class CurveRecord(OpenRecord):
    """Distances of one solver."""

    nfe: Annotated[list[Annotated[float, Meta(gt=0)]], Meta(min_length=1)]
    distance: Annotated[list[float], Meta(min_length=1)]
    steps: list[int | None] = field(default_factory=list)


class BestRecord(OpenRecord):
    """The nearest point of all curves."""

    solver: str
    nfe: float
    distance: float


class FrechetRecord(OpenRecord):
    """The curves of a report."""

    features: str
    variance_kept: float
    samples: Count
    held_out: Count
    floor: float
    best: BestRecord
    curves: Annotated[dict[str, CurveRecord], Meta(min_length=1)]


class ClassRecord(OpenRecord):
    """Samples of one class that look like it."""

    name: str
    samples: Count
    share: float


class FidelityRecord(OpenRecord):
    """Samples that look like the classes asked for."""

    share: float
    classifier_accuracy: float
    fitted_on: Count
    samples: Count
    by_class: Annotated[list[ClassRecord], Meta(min_length=1)]


class DataRecord(OpenRecord):
    """The data of a report."""

    words: str
    shape: Annotated[list[Count], Meta(min_length=1)]
    low: float
    high: float
    train: Count
    marginals: bool = False


class MemorisationRecord(OpenRecord):
    """Distances to the training data."""

    percentile: float
    threshold: float
    share_closer: float
    median_sample: float
    median_held_out: float


class PrivacyRecord(OpenRecord):
    """What samples tell of the training rows."""

    copies: float
    held_out_copies: float
    closest_record: float
    membership_auc: float
    membership_error: float
    rows: Count


class TextsRecord(OpenRecord):
    """States of some samples of tokens as text: a row of ``states`` a sample, of as many as ``times``."""

    times: list[float]
    states: list[list[str]]

    def __post_init__(self) -> None:
        """Raises ValueError unless all rows have the times."""
        if any(len(row) != len(self.times) for row in self.states):
            raise ValueError("texts are not of equal number")


class QualityRecord(OpenRecord):
    """``evaluation/quality.json``, by ``advect report``."""

    format: int
    seed: int
    data: DataRecord
    frechet: FrechetRecord
    fidelity: dict[str, FidelityRecord]
    memorisation: MemorisationRecord
    step: Step | None = None
    marginals: dict[str, dict[str, float]] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)
    captions: list[str] = field(default_factory=list)
    texts: TextsRecord | None = None
    calibration: CalibrationRecord | None = None
    privacy: PrivacyRecord | None = None


class MetricsRow(OpenRecord):
    """A line of ``metrics.jsonl``; a run writes some of these."""

    step: Step
    epoch: float | None = None
    seen: float | None = None
    seconds: float | None = None
    loss: float | None = None
    epoch_loss: float | None = None
    held_out_loss: float | None = None
    eval_frechet: float | None = None
    grad_norm: float | None = None
    lr: float | None = None
    samples_per_s: float | None = None
    flops_per_s: float | None = None
    mfu: float | None = None
