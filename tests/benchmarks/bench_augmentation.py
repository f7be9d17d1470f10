"""What augmentation costs in a training step, and how fast it is beside Keras's old generator.

    python tests/benchmarks/bench_augmentation.py [--batch 128] [--steps 20] [--rounds 7]

Prints a Markdown table. The step is one of the custom network, timed with and without augmentation
in turns after a warm-up; network, recipe and augmentation are the published ones if there are any,
else the hand-picked start of the search. The layer is timed with and without elastic distortion.
The old generator is `ImageDataGenerator` with the same ranges, without shear and elastic
distortion; at run time it needs SciPy, which nothing else here needs (`pip install scipy`): without
it that row is left out.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import keras
import numpy as np
from conftest import ROOT, load_notebook

MOST_OF_A_STEP, LEAST_TIMES_FASTER = 1 / 5, 10


def published_settings(nb):
    """Return the settings of the published custom network, or {}."""
    path = ROOT / "pretrained" / "results.json"
    return nb.read_json(path)["settings"]["custom"] if path.exists() else {}


def alternate(tasks, rounds, steps):
    """Time the functions of `tasks`, {name: function}, in turns; return {name: seconds per call}.

    One round is warm-up. The medians over the rounds are returned, so that a burst of other work
    on the machine does not decide.
    """
    seconds = {name: [] for name in tasks}
    for number in range(rounds + 1):
        for name, task in tasks.items():
            begin = time.perf_counter()
            for _ in range(steps):
                task()
            if number:
                seconds[name].append((time.perf_counter() - begin) / steps)
    return {name: statistics.median(values) for name, values in seconds.items()}


def training_step(nb, settings, augment, images, labels):
    """Return a function that makes one training step of the custom network."""
    network, recipe = nb.split_settings(settings)
    model = nb.training_model(nb.make_model("custom", **network), augment)
    nb.compile_for_training(model, recipe, 1000, np.full(47, 1 / 47))
    one_hot, weights = np.eye(47, dtype=np.float32)[labels], np.ones(len(labels), np.float32)
    return lambda: model.train_on_batch(images, one_hot, sample_weight=weights)


def augmenting(nb, images, elastic):
    """Return a function that augments one batch by the notebook's layer, compiled."""

    class Augment(keras.Model):
        def __init__(self):
            super().__init__()
            self.distort = nb.RandomDistortion(**{**nb.AUGMENTATION, "elastic": elastic})

        def call(self, images):
            return self.distort(images, training=True)

    model = Augment()
    return lambda: model.predict_on_batch(images)


def generating(nb, images):
    """Return a function that augments one batch by ImageDataGenerator; None without SciPy."""
    try:
        import scipy  # noqa: F401
        from keras.src.legacy.preprocessing.image import ImageDataGenerator
    except ImportError:
        return None
    ranges = nb.AUGMENTATION
    generator = ImageDataGenerator(
        rotation_range=ranges["rotation"],
        width_shift_range=ranges["shift"],
        height_shift_range=ranges["shift"],
        zoom_range=ranges["zoom"],
        fill_mode="constant",
        cval=0,
    )
    batches = generator.flow(images, batch_size=len(images), shuffle=False)
    return lambda: next(batches)


def speed_rows(nb, images, rounds, steps):
    """Return the rows on images a second, all of `images` in one batch."""
    makers = {
        "`RandomDistortion`": augmenting(nb, images, 0.0),
        "`RandomDistortion`, elastic": augmenting(nb, images, 1.0),
    }
    old = generating(nb, images)
    if old is not None:
        makers["`ImageDataGenerator`"] = old
    seconds = alternate(makers, rounds, steps)
    title = f"images/s in batches of {len(images):,}"
    rows = [
        [f"{name}, {title}", f"{len(images) / value:,.0f}", "", ""]
        for name, value in seconds.items()
    ]
    if old is None:
        rows.append([f"`ImageDataGenerator`, {title}", "not measured: SciPy is missing", "", ""])
        return rows
    times = seconds["`ImageDataGenerator`"] / seconds["`RandomDistortion`"]
    target = f">= {LEAST_TIMES_FASTER}"
    return [*rows, ["times as fast", f"{times:.1f}", target, verdict(times >= LEAST_TIMES_FASTER)]]


def main():
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128, help="images in a batch")
    parser.add_argument("--steps", type=int, default=20, help="steps in a round")
    parser.add_argument("--rounds", type=int, default=7, help="rounds, after one of warm-up")
    given = parser.parse_args()
    nb = load_notebook()
    random = np.random.RandomState(0)
    images = random.randint(0, 256, (given.batch, 28, 28, 1)).astype(np.float32)
    labels = random.randint(0, 47, given.batch)
    settings = published_settings(nb)
    ranges = nb.augmentation(settings)
    with nb.training_policy() as policy:
        steps = {
            name: training_step(nb, settings, augment, images, labels)
            for name, augment in (("with", ranges), ("without", None))
        }
        seconds = alternate(steps, given.rounds, given.steps)
    share = 1 - seconds["without"] / seconds["with"]
    rows = [
        ["training step with augmentation, ms", f"{1e3 * seconds['with']:.1f}", "", ""],
        ["training step without, ms", f"{1e3 * seconds['without']:.1f}", "", ""],
        [
            "share of augmentation in a step",
            f"{share:.3f}",
            f"< {MOST_OF_A_STEP}",
            verdict(share < MOST_OF_A_STEP),
        ],
    ]
    for count in (given.batch, 8 * given.batch):  # of small batches TensorFlow uses one core alone
        many = np.resize(images, (count, 28, 28, 1))
        rows += speed_rows(nb, many, given.rounds, max(given.steps // 4, 1))
    devices = ", ".join(nb.accelerators()) or "no accelerator"
    print(
        f"{nb.processor()}, {os.cpu_count()} cores, {devices}; Python {platform.python_version()}, "
        f"Keras {keras.version()} on {keras.backend.backend()}, {policy}; custom network "
        f"{'as published' if settings else 'as the search begins'}, batches of {given.batch}; "
        f"augmentation: {', '.join(f'{key} {value}' for key, value in ranges.items())}.\n"
    )
    print(nb.table(rows, ["what", "measured", "target", "met"]).data)


def verdict(met):
    """Return the last cell of a row."""
    return "yes" if met else "**no**"


if __name__ == "__main__":
    main()
