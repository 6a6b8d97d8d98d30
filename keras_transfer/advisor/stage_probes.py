"""Measure how well the classes can be told apart after each stage of a network.

A linear probe (Alain and Bengio, arXiv:1610.01644) is fitted on the pooled output of every stage of the
pretrained backbone and of a copy with random weights. Where the first curve is above the second, the
pretrained weights help rather than the architecture alone; where it stops rising, the remaining stages
contribute nothing for these classes.
"""

from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from keras_transfer.advisor.inputs import check_classes, sized_backbone
from keras_transfer.data.examples import rough_classes
from keras_transfer.data.splits import stratified_sample
from keras_transfer.features.probe import cross_validated_probe
from keras_transfer.utils.console import Table, counted, progress_bar
from keras_transfer.utils.files import free_memory, write_file
from keras_transfer.utils.image_sizes import size_of
from keras_transfer.utils.plotting import GREEN, OCHRE

_VERSION = 2  # of the stored results; increase it when folds, probe or random copy change
_FOLDS = 5
# Significance of the binomial test. It is strict, because images in one fold share a probe, which
# makes the number of correct predictions vary more than a binomial distribution allows for.
_SIGNIFICANCE = 0.001
_MEMORY = 1 << 30  # maximum bytes of decoded images, which both networks read
_MAX_NAMED = 24  # the plot names the stages up to this number and only counts them beyond


@dataclass(frozen=True)
class StageProbe:
    """Accuracy of the probes after one stage, on held-out images.

    Attributes:
        number: of the stage, counted from 1 at the input.
        name: of the stage, see `graph.Stage`.
        accuracy, error: of the pretrained backbone, 0–1, and its standard error.
        random_accuracy, random_error: of the random copy.
        gain, gain_error: difference of the two accuracies, and the standard error of this paired
            difference, which is smaller than the two errors suggest.
    """

    number: int
    name: str
    accuracy: float
    error: float
    random_accuracy: float
    random_error: float
    gain: float
    gain_error: float


@dataclass(frozen=True, eq=False)
class StageProbes:
    """Accuracy curves of a backbone and its random copy, with conclusions.

    Standard errors are over the images; other folds and another random copy would add to them.

    Attributes:
        backbone: its name.
        image_size: height and width of the images.
        names: of the B stages.
        correct: predictions of the probe after each stage that are correct, bool [B, N].
        random_correct: the same for the random copy.
        chance: accuracy of always predicting the largest class, 0–1.
        folds: of the cross-validation.
    """

    backbone: str
    image_size: int | str
    names: tuple[str, ...]
    correct: np.ndarray
    random_correct: np.ndarray
    chance: float
    folds: int

    @property
    def images(self) -> int:
        """Number of images."""
        return self.correct.shape[1]

    @cached_property
    def stages(self) -> tuple[StageProbe, ...]:
        """Results per stage, in order from the input."""
        rows = zip(self.names, self.correct, self.random_correct)
        return tuple(
            StageProbe(i, name, *_mean(row), *_mean(random), *_difference(row, random))
            for i, (name, row, random) in enumerate(rows, 1)
        )

    @cached_property
    def signal(self) -> bool:
        """False if no probe of either network beats always predicting the largest class.

        This is a one-sided binomial test of the best probe at the 0.1 % level, with Bonferroni's
        correction for the number of probes.
        """
        from scipy.stats import binomtest

        counts = np.concatenate([self.correct, self.random_correct]).sum(axis=1)
        test = binomtest(int(counts.max()), self.images, self.chance, alternative="greater")
        return bool(test.pvalue * len(counts) < _SIGNIFICANCE)

    @property
    def best_stage(self) -> int | None:
        """Number of the pretrained stage with the highest accuracy; None without signal."""
        return self._best(self.correct) if self.signal else None

    @property
    def similarity(self) -> float | None:
        """Share of the random features' errors that pretraining removes; None without signal.

        It is (A − R) / (1 − R), where A is the pretrained and R the random accuracy, each at its best
        stage. 1 is a perfect pretrained backbone; 0 or less is no better than random weights.
        """
        if not self.signal:
            return None
        best, random = self.correct.mean(axis=1).max(), self.random_correct.mean(axis=1).max()
        return float((best - random) / (1 - random)) if random < 1 else 0.0

    @property
    def stages_worth_keeping(self) -> int | None:
        """Number of stages up to which the pretrained curve rises; None without signal.

        It ends with the earliest stage within one standard error of the best one, by the paired
        difference (the one-standard-error rule of Breiman et al., CART, 1984). It is 0 if the best
        pretrained probe is not more than one standard error better than the best random one.
        """
        if self.best_stage is None:
            return None
        best = self.correct[self.best_stage - 1]
        gain, error = _difference(best, self.random_correct[self._best(self.random_correct) - 1])
        if gain <= error:
            return 0
        losses = (_difference(best, row) for row in self.correct)
        return next(i for i, (loss, error) in enumerate(losses, 1) if loss <= error)

    @property
    def verdict(self) -> str:
        """The conclusions in a few sentences."""
        if not self.signal:
            top = max(rows.mean(axis=1).max() for rows in (self.correct, self.random_correct))
            return (
                f"No signal: no probe, after any stage of {self.backbone} or its random copy, is "
                f"better than always predicting the largest class (best {_percent(top)}, chance "
                f"{_percent(self.chance)}, {self.images} examples). The labels may not depend on the "
                "examples, or there are too few to tell."
            )
        return " ".join([*self._about_depth(), *self._about_random_weights()])

    def _about_depth(self):
        best, count = self.stages[self.best_stage - 1], len(self.stages)
        yield (
            f"A linear probe of {self.backbone} is most accurate after stage {best.number} of {count} "
            f"({_percent(best.accuracy)} ± {100 * best.error:.1f})."
        )
        worth = self.stages_worth_keeping
        if worth == 0:
            yield "Random weights do about as well, so no stage is worth keeping."
            return
        if worth < best.number:
            yield (
                f"After stage {worth} it is within one standard error of that, so "
                f"{counted(worth, 'stage')} {'is' if worth == 1 else 'are'} worth keeping."
            )
        fall, error = _difference(self.correct[best.number - 1], self.correct[-1])
        if fall > 2 * error:
            yield (
                f"The accuracy falls by {100 * fall:.1f} points towards the last stage, which is "
                "specialized on the classes of the pretraining."
            )

    def _about_random_weights(self):
        random = self.stages[self._best(self.random_correct) - 1]
        text = (
            f"With random weights it reaches at most {_percent(random.random_accuracy)} (stage "
            f"{random.number})"
        )
        if self.similarity > 0:
            text += f", so pretraining removes {100 * self.similarity:.0f} % of the errors"
        yield f"{text}."
        worse = [s.number for s in self.stages if -s.gain > 2 * s.gain_error]
        if worse:
            yield (
                f"After stage{'s' * (len(worse) > 1)} {', '.join(map(str, worse))}, random weights "
                "do better than pretrained ones."
            )

    def _best(self, correct):
        return int(correct.mean(axis=1).argmax()) + 1

    def to_dict(self) -> dict:
        """Return plain data for JSON."""
        return {
            "backbone": self.backbone,
            "image_size": self.image_size,
            "images": self.images,
            "folds": self.folds,
            "chance": self.chance,
            "signal": self.signal,
            "similarity": self.similarity,
            "best_stage": self.best_stage,
            "stages_worth_keeping": self.stages_worth_keeping,
            "verdict": self.verdict,
            "stages": [vars(stage) for stage in self.stages],
        }

    def table(self) -> str:
        """Return a Markdown table of accuracies ± standard errors in percent, one row per stage."""
        rows = []
        for s in self.stages:
            number, name, *accuracies = astuple(s)
            percent = [f"{100 * x:.1f}" for x in accuracies]
            cells = [f"{x} ± {error}" for x, error in zip(percent[::2], percent[1::2])]
            rows.append([number, f"`{name}`", *cells])
        return Table(["stage", "name", "pretrained", "random", "gain"], rows, "rlrrr").markdown()

    def draw(self, path, title: str | None = None) -> None:
        """Draw both curves into a PNG file.

        Args:
            title: by default the backbone's name.
        """
        from matplotlib.figure import Figure  # unlike pyplot, it does not look for a display

        figure = Figure(figsize=(8, 4.8), layout="constrained", facecolor="white")
        axes = figure.add_subplot(facecolor="white")
        numbers = range(1, len(self.names) + 1)
        for label, color, rows in (
            (f"{self.backbone}, pretrained", GREEN, self.correct),
            ("random weights", OCHRE, self.random_correct),
        ):
            mean, error = np.array([_mean(row) for row in rows]).T
            axes.fill_between(numbers, mean - error, mean + error, color=color, alpha=0.2, lw=0)
            axes.plot(numbers, mean, "o-", color=color, markersize=4, label=label)
        axes.axhline(self.chance, color="#7a7a7a", ls=":", label="always the largest class")
        if worth := self.stages_worth_keeping:
            label = f"{worth} of {len(numbers)} stages worth keeping"
            axes.axvline(worth, color="#2c3e8f", ls="--", label=label)
        if len(numbers) <= _MAX_NAMED:
            names = [f"{name}  {number}" for number, name in enumerate(self.names, 1)]
            axes.set_xticks(numbers, names, rotation=60, ha="right", rotation_mode="anchor")
            axes.tick_params(axis="x", labelsize=8)
        else:
            axes.set_xlabel("stage")
        result = f"similarity {self.similarity:.2f}" if self.signal else "no signal"
        axes.set_title(f"{title or self.backbone}: {result} ({self.images} images)", fontsize=11)
        axes.set(ylabel="accuracy of a linear probe ± standard error", ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9)
        write_file(Path(path), lambda temporary: figure.savefig(temporary, dpi=110))

    def __str__(self):
        return f"{self.table()}\n\n{self.verdict}"


def probe_stages(
    model,
    data,
    *,
    image_size: int | str | None = None,
    most: int = 1000,
    seed: int = 0,
    engine: str = "auto",
    store=None,
) -> StageProbes:
    """Fit a linear probe after every stage of a backbone and of its random copy.

    Stage outputs are averaged over their positions, so a probe sees what is in an image but not
    where. Both networks process the images once. Features and results are stored, so the same question
    is answered without computation.

    Args:
        model: of `build_model`, or a `Backbone`; its weights are not changed.
        data: a `keras_transfer.data.ImageData`; copies among its training images are used once. Of
            several labels or heads the probes predict the first, of numbers the side of the median.
        image_size: by default the model's.
        most: maximum number of images; a larger set is sampled by class.
        seed: of the sample, the folds and the random weights.
        engine, store: see `features.extraction.extract`.

    Raises:
        InputError: fewer than two classes have two different training images, or the backbone does not accept the image size.
    """
    rows = check_classes(data, "probing the stages")
    train = data.examples["train"]
    classes = rough_classes(train.labels)
    sampled = rows[stratified_sample(classes[rows], most, seed=seed)]
    examples, labels = train.take(sampled), classes[sampled]
    # Deferred, so that invalid input is reported before Keras is imported.
    from keras_transfer.advisor.untrained import random_copy
    from keras_transfer.data.memory import ImageMemory
    from keras_transfer.features.extraction import extract
    from keras_transfer.features.prefix import pooled_stages, stage_columns
    from keras_transfer.features.store import Store, concluded, digest_of

    backbone = sized_backbone(model, image_size, data)
    store = store or Store()
    prefix = pooled_stages(backbone)
    folds = int(min(_FOLDS, np.bincount(labels).max()))

    def compute():
        memory = ImageMemory(min(_MEMORY, free_memory() // 4))
        copy = random_copy(backbone, examples, seed=seed, store=store, memory=memory)
        features = []
        for network in (prefix, pooled_stages(copy)):
            activations = extract(network, examples, engine=engine, store=store, memory=memory)
            gathered = activations.gather(np.arange(len(examples)))
            features += [gathered[:, columns] for columns in stage_columns(backbone)]
        return {"correct": _probe_all(features, labels, folds, seed).astype(int).tolist()}

    stored = concluded(
        prefix,  # the random copy follows from it, the seed and the images
        store,
        f"stage probes {_VERSION}",
        compute,
        of=f"probes on {len(examples)} images",
        engine=engine,
        view="probes",
        sample=digest_of(examples.digests, labels),
        folds=folds,
        seed=seed,
    )
    correct, stages = np.array(stored["correct"], bool), len(backbone.stages)
    return StageProbes(
        backbone=backbone.name,
        image_size=size_of(backbone.input_shape),
        names=tuple(stage.name for stage in backbone.stages),
        correct=correct[:stages],
        random_correct=correct[stages:],
        chance=float(np.bincount(labels).max() / len(labels)),
        folds=folds,
    )


def _probe_all(features, labels, folds, seed):
    """Return which predictions the probe on each of the features [N, D] gets right, bool [len, N]."""
    bar = progress_bar(features, "probing", total=len(features), unit="stages")
    return np.stack([cross_validated_probe(x, labels, folds=folds, seed=seed).correct for x in bar])


def _mean(correct):
    """Return (mean, its standard error) over images."""
    return float(correct.mean()), float(correct.std(ddof=1) / np.sqrt(len(correct)))


def _difference(correct, other):
    return _mean(correct.astype(int) - other)


def _percent(share):
    return f"{100 * share:.1f} %"
