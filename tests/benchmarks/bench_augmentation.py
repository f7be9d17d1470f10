"""What augmentation costs in a training step, and how fast it is beside Keras's old generator.

    python tests/benchmarks/bench_augmentation.py [--batch 128] [--steps 20] [--rounds 7]

Prints a Markdown table. The step is one of the custom network, timed with and without augmentation
in turns after a warm-up; the network is the published one if there is one, else the hand-picked
start of the search. The old generator is `ImageDataGenerator` with the same ranges; at run time it
needs SciPy, which nothing else here needs (`pip install scipy`): without it that row is left out.
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


def published_network(nb):
    """Return `make_custom`'s arguments of the published custom network, or {}."""
    path = ROOT / "pretrained" / "results.json"
    if not path.exists():
        return {}
    return nb.split_settings(nb.read_json(path)["settings"]["custom"])[0]


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


def training_step(nb, network, augment, images, labels):
    """Return a function that makes one training step of the custom network."""
    net = nb.fresh_network("custom", network, nb.SEED)
    model = nb.training_model(net, augment)
    nb.compile_for_training(model, nb.RECIPE, 1000)
    one_hot, weights = np.eye(47, dtype=np.float32)[labels], np.ones(len(labels), np.float32)
    return lambda: model.train_on_batch(images, one_hot, sample_weight=weights)


def augmenting(nb, images):
    """Return a function that augments one batch by the notebook's layer, compiled."""

    class Augment(keras.Model):
        def __init__(self):
            super().__init__()
            self.affine = nb.RandomAffine(**nb.AUGMENTATION)

        def call(self, images):
            return self.affine(images, training=True)

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
    network = published_network(nb)
    with nb.training_policy() as policy:
        steps = {
            name: training_step(nb, network, augment, images, labels)
            for name, augment in (("with", nb.AUGMENTATION), ("without", None))
        }
        seconds = alternate(steps, given.rounds, given.steps)
    share = 1 - seconds["without"] / seconds["with"]
    makers = {"layer": augmenting(nb, images), "generator": generating(nb, images)}
    makers = {name: maker for name, maker in makers.items() if maker is not None}
    augment = alternate(makers, given.rounds, max(given.steps // 4, 1))
    speed = {name: given.batch / value for name, value in augment.items()}
    rows = [
        ["training step with augmentation, ms", f"{1e3 * seconds['with']:.1f}", "", ""],
        ["training step without, ms", f"{1e3 * seconds['without']:.1f}", "", ""],
        [
            "share of augmentation in a step",
            f"{share:.3f}",
            f"< {MOST_OF_A_STEP}",
            verdict(share < MOST_OF_A_STEP),
        ],
        ["`RandomAffine`, images/s", f"{speed['layer']:,.0f}", "", ""],
    ]
    if "generator" in speed:
        times = speed["layer"] / speed["generator"]
        rows += [
            ["`ImageDataGenerator`, images/s", f"{speed['generator']:,.0f}", "", ""],
            [
                "times as fast",
                f"{times:.1f}",
                f">= {LEAST_TIMES_FASTER}",
                verdict(times >= LEAST_TIMES_FASTER),
            ],
        ]
    else:
        rows.append(["`ImageDataGenerator`, images/s", "not measured: SciPy is missing", "", ""])
    devices = ", ".join(nb.accelerators()) or "no accelerator"
    print(
        f"{nb.processor()}, {os.cpu_count()} cores, {devices}; Python {platform.python_version()}, "
        f"Keras {keras.version()} on {keras.backend.backend()}, {policy}; custom network "
        f"{'as published' if network else 'as the search begins'}, batches of {given.batch}.\n"
    )
    print(nb.table(rows, ["what", "measured", "target", "met"]).data)


def verdict(met):
    """Return the last cell of a row."""
    return "yes" if met else "**no**"


if __name__ == "__main__":
    main()
