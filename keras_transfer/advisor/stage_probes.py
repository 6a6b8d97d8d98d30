"""Where in a network the data lives: how well each stage's output tells the classes apart.

A linear probe (Alain and Bengio, arXiv:1610.01644) is fitted on the pooled output of every stage of
the pretrained backbone, and of a duplicate with random weights. Where the first curve lies above the
second, it is the ImageNet weights that help and not the architecture; where it no longer rises, the
stages that follow have nothing to add for these classes.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.features.closed_form import cross_validated_probe, some_rows
from keras_transfer.utils.console import progress_bar
from keras_transfer.utils.files import write_file
from keras_transfer.utils.machine import free_memory
from keras_transfer.utils.plotting import GREEN, OCHRE

_FOLDS = 5
_VERSION = 2  # of probes: raise it when folds, probe or duplicate give other answers
# Of the binomial test. Folds share the images that their probes are fitted on, which makes right
# answers by chance vary more than it allows for: hence no more.
_CHANCE_LEVEL = 0.001
_MEMORY = 1 << 30  # bytes of decoded images at most, which two networks look at
_MOST_NAMED = 24  # stages with their names under the image; of more only numbers


@dataclass(frozen=True)
class StageProbe:
    """What the probes after one stage found; accuracies are of images that they were not fitted on.

    Attributes:
        number: of the stage; 1 is nearest to the image, so it is also how many stages come to here.
        name: of the stage, see `stages.Stage`.
        accuracy, error: of the pretrained backbone, 0–1, and its standard error.
        random_accuracy, random_error: of the random duplicate.
        gain, gain_error: the first less the second. The error is that of the paired difference (both
            answer for the same images), which is less than the two errors make.
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
    """The curves of a backbone and its random duplicate, and what follows from them.

    Standard errors are those of a mean over images; that other folds or another random duplicate would
    give other probes is not in them.

    Attributes:
        backbone: its name.
        image_size: height and width of the images.
        names: of the B stages.
        correct: which images the probe after each stage named rightly, bool [B, N].
        random_correct: the same of the duplicate.
        chance: accuracy of always naming the largest class, 0–1.
        folds: of the cross-validation.
    """

    backbone: str
    image_size: int
    names: tuple[str, ...]
    correct: np.ndarray
    random_correct: np.ndarray
    chance: float
    folds: int

    @property
    def images(self) -> int:
        return self.correct.shape[1]

    @cached_property
    def stages(self) -> tuple[StageProbe, ...]:
        """The numbers of each stage, from the image upwards."""
        rows = zip(self.names, self.correct, self.random_correct)
        return tuple(
            StageProbe(i, name, *_mean(own), *_mean(duplicate), *_difference(own, duplicate))
            for i, (name, own, duplicate) in enumerate(rows, 1)
        )

    @cached_property
    def signal(self) -> bool:
        """False where no probe of either network is better than always naming the largest class.

        Better: so many right answers have a probability under 0.1 % by chance (one-sided binomial
        test of the best probe, Bonferroni's correction for the number of probes).
        """
        from scipy.stats import binomtest

        right = np.concatenate([self.correct, self.random_correct]).sum(axis=1)
        test = binomtest(int(right.max()), self.images, self.chance, alternative="greater")
        return bool(test.pvalue * len(right) < _CHANCE_LEVEL)

    @property
    def best_stage(self) -> int | None:
        """Number of the pretrained stage with the highest accuracy; None without signal."""
        return self._best(self.correct) if self.signal else None

    @property
    def similarity(self) -> float | None:
        """How much of what random features leave to gain the pretrained ones gain; None without signal.

        (A − R) / (1 − R), where A is the pretrained and R the random accuracy, each after its own
        best stage: 1 is a pretrained backbone that names every image, 0 or less one that is no
        better than random weights.
        """
        if not self.signal:
            return None
        best, other = self.correct.mean(axis=1).max(), self.random_correct.mean(axis=1).max()
        return float((best - other) / (1 - other)) if other < 1 else 0.0

    @property
    def stages_worth_keeping(self) -> int | None:
        """Up to which stage the pretrained curve rises; None without signal.

        The earliest stage whose probe is worse than the best one by no more than a standard error
        of the (paired) difference, as the one-standard-error rule of Breiman et al. (CART, 1984) has
        it. 0 where the best pretrained probe is not better than the best random one by as much.
        """
        if self.best_stage is None:
            return None
        best = self.correct[self.best_stage - 1]
        gain, error = _difference(best, self.random_correct[self._best(self.random_correct) - 1])
        if gain <= error:
            return 0
        behind = (_difference(best, row) for row in self.correct)
        return next(i for i, (loss, error) in enumerate(behind, 1) if loss <= error)

    @property
    def verdict(self) -> str:
        """What the curves say, in a few sentences."""
        if not self.signal:
            top = max(max(s.accuracy, s.random_accuracy) for s in self.stages)
            return (
                f"No signal: no probe, after any stage of {self.backbone} or its random duplicate, is "
                f"better than always naming the largest class (best {_percent(top)}, chance "
                f"{_percent(self.chance)}, {self.images} images). The labels may not follow "
                f"from the images, or there are too few of them to tell."
            )
        return " ".join([self._kept(), self._gained(), *self._crossings()])

    def _kept(self):
        best, count = self.stages[self.best_stage - 1], len(self.stages)
        text = (
            f"The best probe of {self.backbone} stands after stage {best.number} of {count} "
            f"({_percent(best.accuracy)} ± {100 * best.error:.1f})."
        )
        keep = self.stages_worth_keeping
        if keep == 0:
            return f"{text} It is no better than random weights allow: no stage is worth keeping."
        if keep < best.number:
            text += f" After stage {keep} it is as good within a standard error."
        text += f" {keep} of {count} stages are worth keeping."
        fall, error = _difference(self.correct[best.number - 1], self.correct[-1])
        if fall > 2 * error:
            text += (
                f" To the last stage the curve falls by {100 * fall:.1f} points: the last stages are "
                "made for other classes."
            )
        return text

    def _gained(self):
        other = self.stages[self._best(self.random_correct) - 1]
        return (
            f"Random weights reach {_percent(other.random_accuracy)} (stage {other.number}): the "
            f"pretrained ones gain {100 * self.similarity:.0f} % of the room above."
        )

    def _crossings(self):
        worse = [s.number for s in self.stages if -s.gain > 2 * s.gain_error]
        if worse:
            yield (
                f"After stage{'s' * (len(worse) > 1)} {', '.join(map(str, worse))} random weights "
                "do better than pretrained ones."
            )

    def _best(self, correct):
        return int(correct.mean(axis=1).argmax()) + 1

    def to_dict(self) -> dict:
        """All numbers as plain data, for JSON."""
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
        """Accuracies ± standard errors in percent, a row a stage, as Markdown."""
        lines = ["| stage | | pretrained | random | gain |", "|---|---|---|---|---|"]
        for s in self.stages:
            values = (
                (s.accuracy, s.error),
                (s.random_accuracy, s.random_error),
                (s.gain, s.gain_error),
            )
            cells = " | ".join(f"{100 * value:.1f} ± {100 * error:.1f}" for value, error in values)
            lines.append(f"| {s.number} | `{s.name}` | {cells} |")
        return "\n".join(lines)

    def draw(self, path, title: str | None = None) -> None:
        """Draws both curves into a PNG file.

        Args:
            title: by default the backbone's name.
        """
        from matplotlib.figure import Figure  # no pyplot: it would look for a screen

        figure = Figure(figsize=(8, 4.8), layout="constrained", facecolor="white")
        axes = figure.add_subplot(facecolor="white")
        numbers = [s.number for s in self.stages]
        for label, colour, prefix in (
            (f"{self.backbone}, pretrained", GREEN, ""),
            ("random weights", OCHRE, "random_"),
        ):
            mean = np.array([getattr(s, f"{prefix}accuracy") for s in self.stages])
            error = np.array([getattr(s, f"{prefix}error") for s in self.stages])
            axes.fill_between(numbers, mean - error, mean + error, color=colour, alpha=0.2, lw=0)
            axes.plot(numbers, mean, "o-", color=colour, markersize=4, label=label)
        axes.axhline(self.chance, color="#7a7a7a", ls=":", label="always the largest class")
        if self.stages_worth_keeping:
            axes.axvline(
                self.stages_worth_keeping,
                color="#2c3e8f",
                ls="--",
                label=f"{self.stages_worth_keeping} of {len(numbers)} stages worth keeping",
            )
        if len(numbers) <= _MOST_NAMED:
            names = [f"{s.name}  {s.number}" for s in self.stages]
            axes.set_xticks(numbers, names, rotation=60, ha="right", rotation_mode="anchor")
            axes.tick_params(axis="x", labelsize=8)
        else:
            axes.set_xlabel("stage")
        shown = "no signal" if not self.signal else f"similarity {self.similarity:.2f}"
        axes.set_title(f"{title or self.backbone}: {shown} ({self.images} images)", fontsize=11)
        axes.set(ylabel="accuracy of a linear probe ± error", ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9)
        write_file(Path(path), lambda temporary: figure.savefig(temporary, dpi=110))

    def __str__(self):
        return f"{self.table()}\n\n{self.verdict}"


def probe_stages(
    model,
    data,
    *,
    image_size: int | None = None,
    most: int = 1000,
    seed: int = 0,
    engine: str = "auto",
    store=None,
) -> StageProbes:
    """Fits a linear probe after every stage of a backbone and of its random duplicate.

    Stage outputs are averaged over their places, so a probe sees what is in an image and not
    where. Both networks run over the images once, and the store keeps what came out, and what the
    probes answered: the same again makes no duplicate and fits nothing.

    Args:
        model: of `build_model`, or a `Backbone`; its weights are not changed.
        data: a `keras_transfer.data.ImageData` of one class per image; its training images are
            used, copies of an image once.
        image_size: by default the model's.
        most: images, about; of more a stratified sample with at least 5 of each class.
        seed: of the sample, the folds and the duplicate's weights.
        engine, store: see `features.extraction.extract`.

    Raises:
        InputError: another task, fewer than two classes with two different training images, or an
            image size that the backbone does not take.
    """
    examples, labels = _sample(data, most, seed)
    # Late, as wrong input is answered before Keras is imported.
    from keras_transfer.advisor.untrained import random_duplicate
    from keras_transfer.data.memory import ImageMemory
    from keras_transfer.features.extraction import extract
    from keras_transfer.features.prefix import pooled_stages, stage_columns
    from keras_transfer.features.store import Store, concluded, digest_of
    from keras_transfer.models.builders import backbone_at

    backbone = backbone_at(model, image_size)
    if backbone.input_shape[1] is None:
        raise InputError(
            f"The backbone '{backbone.name}' takes any image size: give a model of build_model, "
            "which has one."
        )
    store = store or Store()
    prefix = pooled_stages(backbone)
    folds = int(min(_FOLDS, np.bincount(labels).max()))

    def compute():
        memory = ImageMemory(min(_MEMORY, free_memory() // 4))
        duplicate = random_duplicate(backbone, examples, seed=seed, store=store, memory=memory)
        rows, columns = np.arange(len(examples)), stage_columns(backbone)
        features = []
        for network in (prefix, pooled_stages(duplicate)):
            found = extract(network, examples, engine=engine, store=store, memory=memory)
            gathered = found.gather(rows)
            features += [gathered[:, part] for part in columns]
        return {"correct": _probe_all(features, labels, folds, seed).astype(int).tolist()}

    found = concluded(
        prefix,  # the duplicate follows from it, the seed and the images
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
    correct, stages = np.array(found["correct"], bool), len(backbone.stages)
    return StageProbes(
        backbone=backbone.name,
        image_size=backbone.input_shape[1],
        names=tuple(stage.name for stage in backbone.stages),
        correct=correct[:stages],
        random_correct=correct[stages:],
        chance=float(np.bincount(labels).max() / len(labels)),
        folds=folds,
    )


def _sample(data, most, seed):
    """(examples, labels) to probe on: different images, each class in its share."""
    data.require_classes("probing stages", "train")
    examples = data.examples["train"]
    different = np.sort(np.unique(examples.digests, return_index=True)[1])
    labels = examples.labels[different]
    counts = np.bincount(labels, minlength=len(data.class_names))
    if (counts > 1).sum() < 2:
        raise InputError(
            f"{data.root} has {(counts > 1).sum()} classes with two different training images or "
            "more; probing the stages takes two such classes: add images."
        )
    rows = some_rows(labels, np.arange(len(labels)), seed, most)
    return examples.take(different[rows]), labels[rows]


def _probe_all(features, labels, folds, seed):
    """Which images the probe on each of the features [N, D] named rightly, bool [len, N]."""
    bar = progress_bar(features, "probing", total=len(features), unit="stages")
    return np.stack([cross_validated_probe(x, labels, folds=folds, seed=seed).correct for x in bar])


def _mean(right):
    """(mean, its standard error) over images."""
    return float(right.mean()), float(right.std(ddof=1) / np.sqrt(len(right)))


def _difference(right, other):
    return _mean(right.astype(int) - other)


def _percent(share):
    return f"{100 * share:.1f} %"
