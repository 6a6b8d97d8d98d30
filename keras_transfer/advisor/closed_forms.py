"""Compare candidates for what a model sees by closed-form heads, cross-validated on cached features.

A candidate is one or several backbones, the stages that the head reads, an image size and a crop. Its head
is fitted in seconds, and its outputs for examples that it was not fitted on are compared with those of
other candidates, example by example.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from keras_transfer.advisor.budget import TimeLeft
from keras_transfer.advisor.evidence import Candidate, Evidence, Row
from keras_transfer.advisor.inputs import comparable_sample, sized_backbone
from keras_transfer.advisor.judging import difference, is_signal, judge, score_name
from keras_transfer.data.examples import Examples, ImageData
from keras_transfer.data.memory import ImageMemory
from keras_transfer.errors import InputError
from keras_transfer.features.closed_form import solve
from keras_transfer.features.extraction import extract
from keras_transfer.features.prefix import averaged, choose_engine, prefix_of, stage_costs
from keras_transfer.modalities import Framing, open_framing
from keras_transfer.modalities.views import View
from keras_transfer.models import TAPS, WITH_TFIDF
from keras_transfer.models.builders import by_head, heads_for
from keras_transfer.models.sources.applications import BACKBONES
from keras_transfer.utils.files import free_memory
from keras_transfer.utils.image_sizes import size_of

MOST = 1500  # examples
_BATCH = 32  # of the timing
_MEMORY = 1 << 30  # bytes of decoded examples, which several passes read
# What else may be found out: whether two backbones are better together than alone, which other size and crop
# are better where `image_size` leaves them open, whether mirror images help, and how long a forward pass takes.
QUESTIONS = ("together", "framings", "mirror", "pace")


def compare_closed_forms(
    data: ImageData,
    backbones: Sequence,
    *,
    image_size: int | str | Framing | None = None,
    taps: Sequence[str] | None = None,
    weights: str | None = "imagenet",
    questions: Sequence[str] = QUESTIONS,
    engine: str = "auto",
    seed: int = 0,
    time_left: TimeLeft = TimeLeft(),
    built: Mapping[str, Any] | None = None,
) -> Evidence:
    """Compare what a model could see, by the loss of closed-form heads in cross-validation.

    The backbones are compared alone and, of two or more, the best two together. The best of these is
    tried with the other framings, and with the smaller ones, that the modality offers.

    Another candidate than the first is chosen only if its loss is lower by more than one standard error
    of the difference: the first is what is trained without a comparison, and less than that may be luck.
    Groups of the split, and copies of an example, stay in one fold.

    Args:
        data: any task, or several heads; only training examples are read.
        backbones: names, paths of source models, or models.
        image_size: the only size to try; a `Framing` may also say the crop.
        taps: those to try for backbones that are built here; by default all for such examples.
        questions: those of `QUESTIONS` to answer.
        time_left: what ends the comparison early; by default nothing.
        built: name → model with the backbone's pretrained weights and all of these taps, which saves
            building it again at its size.

    Raises:
        InputError: no backbone can be used.
    """
    started = time.perf_counter()
    data.require("train")
    taps = tuple(data.modality.taps if taps is None else taps)
    table = _Comparison(data, taps, weights, engine, seed, built or {})
    given, names = open_framing(image_size), list(backbones)
    together = "together" in questions
    pair = joined(names) if together else None
    if pair is None or not table.add(pair, given):
        for name in names:
            if table.first and not table.comparable:
                break
            if table.rows and not time_left.more():
                table.notes.append(f"{_name(name)} is not compared, because the time is over.")
            else:
                table.add(name, given)
        if not table.first:
            raise InputError(f"No backbone can be used. {' '.join(table.notes)}")
        pair = joined(table.best_names()[:2]) if together and len(names) > 2 else None
        if pair and time_left.more():
            table.add(pair, given, only=pair)
    if table.rows:
        if "mirror" in questions and table.train.modality.mirrors and time_left.more():
            table.add_mirror()
        if "framings" in questions:
            _try_framings(table, given, time_left)
    return table.result(given, time.perf_counter() - started, "pace" in questions)


def _try_framings(table, given, time_left):
    """Add the best combination at other crops, then at other sizes.

    Sizes get smaller until they are worse; where the best is too large to be trained in time, they get
    smaller until one is not, and the backbones of a combination are also tried alone.
    """
    best, modality = table.best.candidate, table.train.modality
    for framing in () if given.settled else modality.other_framings(table.train, best.framing):
        if time_left.more():
            table.add_like(best, framing)
    for framing in (
        modality.larger_framings(table.best.candidate.framing) if given.size is None else ()
    ):
        if time_left.more():
            table.add_like(table.best.candidate, framing)
    smaller = modality.smaller_framings(table.best.candidate.framing) if given.size is None else ()
    if not smaller:
        return
    best, fits = table.best, time_left.fits
    large = fits is not None and not fits(*table.pace(best))
    for framing in smaller:
        before = len(table.rows)
        if any(row.candidate.framing == framing for row in table.rows):
            continue  # it was the default
        if not time_left.more() or not table.add_like(best.candidate, framing, alone=large):
            return
        new = table.rows[before:]
        gap, error = table.behind(min(new, key=lambda row: row.judged.loss))
        if gap > error and (not large or any(fits(*table.pace(row)) for row in new)):
            return


def joined(names: Sequence) -> str | None:
    """Return two names from the table of backbones, joined by `+`; None for anything else."""
    known = all(isinstance(name, str) and name in BACKBONES for name in names)
    return "+".join(names) if known and len(names) == 2 else None


def widest(taps: Sequence[str]) -> str:
    """Return the taps of which the others are a part."""
    return max(taps, key=TAPS.index)


def _name(backbone):
    return backbone if isinstance(backbone, str) else backbone.name


@dataclass(frozen=True)
class _Option:
    """Features of one pass that a head could read: some columns of it."""

    backbone: str
    taps: str
    columns: np.ndarray
    part: np.ndarray | None
    cost: float
    layers: int
    part_taps: str | None = "last"  # what a head on the part alone reads


class _Comparison:
    """The rows that were found so far, and what further ones need."""

    def __init__(self, data, taps, weights, engine, seed, built):
        self.data, self.taps, self.weights = data, taps, weights
        self.engine, self.built = engine, built
        self.seed = seed
        self.train = comparable_sample(data, MOST, seed)
        heads = heads_for(data)
        labels = by_head(heads, self.train.labels)
        if len(self.train):
            heads = {name: head.fitted(labels[name]) for name, head in heads.items()}
        self.heads = heads
        self.together = self.train.together
        classes = [len(np.unique(labels[n])) for n, h in heads.items() if h.task == "single_label"]
        self.comparable = len(self.train) > 1 and min(classes, default=2) > 1
        self.memory = ImageMemory(min(_MEMORY, free_memory() // 4))
        self.rows: list[Row] = []
        self.outputs: dict[Candidate, dict] = {}  # held-out
        self.notes: list[str] = []
        self.first: Candidate | None = None
        self.sources: dict[str, Any] = {}  # name of a combination → what `sized_backbone` takes
        self.prefixes: dict[tuple, Any] = {}  # (name, size) → (prefix, options)
        self.seconds: dict[tuple, float] = {}  # of the forward pass for one example
        self.mirror_gain: tuple[float, float] | None = None

    def add(self, backbone, framing: Framing, only: str | None = None) -> bool:
        """Add the rows of one pass; return False if the backbone cannot be used."""
        name = _name(backbone)
        try:
            prefix, options = self._prefix(backbone, framing)
        except InputError as error:
            self.notes.append(f"{name} is skipped: {error}")
            return False
        self.first = self.first or Candidate(options[0].backbone, options[0].taps, _seen(prefix))
        features = self._features(prefix, (View(),)) if self.comparable else None
        for option in options:
            self.sources[option.backbone] = backbone if name == option.backbone else option.backbone
            if self.comparable and only in (None, option.backbone):
                self._add_rows(option, prefix, features)
        return True

    def add_like(self, candidate: Candidate, framing: Framing, alone: bool = False) -> bool:
        """Add a candidate's backbone at another size or crop.

        Args:
            alone: also add the backbones of a combination alone.
        """
        only = None if alone else candidate.backbone
        return self.add(self.sources[candidate.backbone], framing, only=only)

    def pace(self, row: Row) -> tuple[float, int]:
        """Return (seconds of a candidate's forward pass for one example, number of its layers).

        The network of the best candidate is timed; others are expected to take as much longer as they
        have more multiplications.
        """
        best = self.best
        return self._seconds(best.candidate) * row.cost / best.cost, row.layers

    def _seconds(self, candidate):
        key = candidate.backbone, candidate.framing  # the network is the same for all taps
        if key not in self.seconds:
            prefix, _ = self._prefix(self.sources[candidate.backbone], candidate.framing)
            examples = self.data.examples["train"]
            self.seconds[key] = seconds_per_example(prefix, examples)
        return self.seconds[key]

    def add_mirror(self):
        """Find out whether the best candidate becomes better if it also learns from mirror images."""
        row = self.best
        candidate = row.candidate
        prefix, options = self._prefix(self.sources[candidate.backbone], candidate.framing)
        option = next(
            o
            for o in options
            if o.backbone == candidate.backbone and candidate.taps in (o.taps, o.part_taps)
        )
        if candidate.taps != option.taps:  # the last stage alone
            option = replace(option, columns=option.columns[option.part], part=None)
        solved = self._solve(option, self._features(prefix, (View(), View("mirror"))), views=2)
        outputs = {name: found.held_out[: len(self.train)] for name, found in solved.items()}
        judged = judge(self.heads, self.train.labels, outputs)
        self.mirror_gain = difference(row.judged.losses, judged.losses, self.together)

    @property
    def best(self) -> Row:
        """The first row, unless the loss of others is lower by more than one standard error.

        Then it is the cheapest of these that is not worse than the lowest by more than one.
        """
        first = self.rows[0]
        lower = [row for row in self.rows if self._surely_lower(row, first)]
        lowest = min(lower, key=lambda row: row.judged.loss, default=first)
        equal = [row for row in lower if not self._surely_lower(lowest, row)]
        return min(equal, key=lambda row: (row.cost, row.judged.loss), default=first)

    def _surely_lower(self, row: Row, other: Row) -> bool:
        gap, error = self._gap(row, other)
        return gap < -error

    def _gap(self, row: Row, other: Row) -> tuple[float, float]:
        return difference(row.judged.losses, other.judged.losses, self.together)

    def best_names(self) -> list[str]:
        """Return the names of the backbones, best first."""
        rows = sorted(self.rows, key=lambda row: row.judged.loss)
        return list(dict.fromkeys(row.candidate.backbone for row in rows))

    def _is_signal(self, candidate) -> bool:
        labels, outputs = self.train.labels, self.outputs[candidate]
        return is_signal(self.heads, labels, outputs, self.together, self.seed)

    def behind(self, row: Row) -> tuple[float, float]:
        """Return (loss behind the chosen row, its standard error)."""
        return self._gap(row, self.best)

    def _tuned_framings(self, given, sizes) -> dict[Any, Framing]:
        """Return size → framing for fine-tuning where the data choose it, see `Evidence.tuned`."""
        assert self.first is not None, "a comparison without a backbone is an InputError"
        known, modality = self.first.framing, self.train.modality
        offers = (modality.smaller_framings, modality.larger_framings)
        if given.settled or not any(offer(known) for offer in offers):
            return {}  # such as texts, whose encoder brings its framing
        found = {
            size: given.settled_as(modality.choose_framing(self.train, size)[0]).at(size)
            for size in {known.size, *sizes}
        }
        return found if found[known.size] == known else {}  # a model of its own has its framing

    def result(self, given: Framing, seconds: float, pace: bool) -> Evidence:
        rows = []
        chosen: Any = self.best if self.rows else None
        for row in sorted(self.rows, key=lambda row: (row is not chosen, row.judged.loss)):
            gap, error = (0.0, 0.0) if row is chosen else self._gap(row, chosen)
            rows.append(replace(row, behind=gap, error=error))
        assert self.first is not None, "a comparison without a backbone is an InputError"
        gain = self.mirror_gain
        best = rows[0].candidate if rows else self.first
        prefix, _ = self._prefix(self.sources[best.backbone], best.framing)
        return Evidence(
            tuple(rows),
            self.first,
            score_name(self.heads),
            len(self.train),
            signal=not rows or self._is_signal(best),
            mirror=gain is None or gain[0] >= -gain[1],
            mirror_gain=gain,
            forward=self._seconds(best) if pace else 0.0,
            layers=rows[0].layers if rows else len(prefix.model.layers),
            framings=self._tuned_framings(given, (row.candidate.framing.size for row in rows)),
            seconds=seconds,
            notes=tuple(self.notes),
        )

    def _prefix(self, backbone, framing):
        """Return (prefix at this framing, its options); networks are built once for each size."""
        key = _name(backbone), framing.size
        if key not in self.prefixes:
            source = self.built.get(_name(backbone))
            if source is None or framing.built_size not in (None, size_of(source.input_shape)):
                source = backbone
            network = sized_backbone(
                source, framing, self.data, taps=widest(self.taps), weights=self.weights
            )
            prefix = prefix_of(network, len(network.stages))
            self.prefixes[key] = prefix, self._options(backbone, network)
            for size in (prefix.image_size, prefix.framing.size):
                self.prefixes[key[0], size] = self.prefixes[key]
        prefix, options = self.prefixes[key]
        if framing.settled:  # engines do not depend on the crop
            prefix = replace(prefix, framing=framing.at(prefix.image_size))
        return prefix, options

    def _options(self, backbone, network) -> list[_Option]:
        """Return what heads could read: each backbone alone, and all together."""
        cuts, costs, name = network.cuts, stage_costs(network), _name(backbone)
        sizes = [len(stage.layers) for stage in network.stages]
        spent = sum(costs), sum(sizes)
        width = network.output_shape[-1]  # averaged over positions, if there are any
        whole = np.arange(width)
        if not cuts.tapped:
            return [_Option(name, "last", whole, None, *spent)]
        last, branches = cuts.last_columns(), cuts.columns_of_branches()
        groups = [(name, whole, spent)]
        if len(counted := cuts.tfidf_columns()):
            both = _Option(name, WITH_TFIDF, whole, last, *spent, part_taps=None)
            encoder = np.setdiff1d(whole, counted)
            part = np.flatnonzero(np.isin(encoder, last))
            return [both, _Option(name, "all", encoder, part, *spent)]
        if len(branches) > 1:
            alone = [
                (sum(costs[i] for i in stages), sum(sizes[i] for i in stages))
                for stages in cuts.stages_of_branches()
            ]
            groups += zip(name.split("+"), branches, alone)
        if len(last) == width:  # there is one stage
            return [_Option(one, "last", columns, None, *spent) for one, columns, spent in groups]
        return [
            _Option(one, "all", columns, np.flatnonzero(np.isin(columns, last)), *spent)
            for one, columns, spent in groups
        ]

    def _features(self, prefix, views) -> np.ndarray:
        """Return features of the sample, the views below each other: float32 [V · N, D]."""
        found = extract(prefix, self.train, views, memory=self.memory, engine=self.engine)
        rows = np.arange(len(self.train))
        parts = [averaged(found.gather(rows, view)) for view in range(found.views)]
        return np.concatenate(parts).astype("float32")

    def _solve(self, option, features, views=1) -> dict:
        """Return name of each head → its closed form on an option's columns."""
        whole = len(option.columns) == features.shape[1]
        inputs = features if whole else features[:, option.columns]
        labels = by_head(self.heads, self.train.labels)
        solved = {}
        for name, head in self.heads.items():
            targets = np.concatenate([head.from_units(labels[name])] * views)
            groups = np.tile(self.together, views)
            solved[name] = solve(
                head.task, inputs, targets, groups, part=option.part, seed=self.seed, views=views
            )
        return solved

    def _add_rows(self, option, prefix, features):
        solved = self._solve(option, features)
        readings = {option.taps: "held_out"}
        if option.part is not None and option.part_taps in self.taps:
            readings[option.part_taps] = "held_out_part"
        for taps, attribute in readings.items():
            outputs = {name: getattr(found, attribute) for name, found in solved.items()}
            if any(values is None for values in outputs.values()):
                continue  # a class is too small for folds
            candidate = Candidate(option.backbone, taps, _seen(prefix))
            judged = judge(self.heads, self.train.labels, outputs)
            self.rows.append(Row(candidate, judged, option.cost, option.layers))
            self.outputs[candidate] = outputs


def _seen(prefix) -> Framing:
    """Return the framing of a prefix with its size."""
    return prefix.framing.at(prefix.image_size)


def seconds_per_example(prefix, examples: Examples) -> float:
    """Return the seconds of a prefix's forward pass for one of the examples, in a batch of 32."""
    run = choose_engine("keras", prefix).run
    lengths = examples.lengths(prefix.framing)
    mean = 1 if lengths is None else max(1, round(float(lengths.mean())))
    shape = [length or mean for length in prefix.model.input_shape[1:]]
    batch = np.ones((_BATCH, *shape), prefix.takes)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        run(batch)
        seconds.append(time.perf_counter() - started)
    return min(seconds) / _BATCH
