"""Seconds for the same training on one and on two devices or processes, as a Markdown table.

    python tests/benchmarks/bench_devices.py [--images 2560] [--network custom]

Each row trains in processes of its own: two epochs, of which the second is timed. The devices are
virtual ones of one CPU, so the table shows what sharing the work costs, not what it gains.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
ROWS = {
    "TensorFlow, one device": {"KERAS_BACKEND": "tensorflow"},
    "TensorFlow, two devices (`MirroredStrategy`)": {"KERAS_BACKEND": "tensorflow", "DEVICES": "2"},
    "JAX, one device": {"KERAS_BACKEND": "jax"},
    "JAX, two devices (`DataParallel`)": {"KERAS_BACKEND": "jax", "DEVICES": "2"},
    "JAX, two processes on loopback": {"KERAS_BACKEND": "jax", "PROCESSES": "2"},
}


def child(name, count):
    """Train in this process, as the environment says, and print the seconds and the last loss."""
    devices = int(os.environ.get("DEVICES", 1))
    if os.environ["KERAS_BACKEND"] == "tensorflow":
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        parts = [tf.config.LogicalDeviceConfiguration()] * devices
        tf.config.set_logical_device_configuration(cpu, parts)
    else:
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
        os.environ["JAX_PLATFORMS"] = "cpu"
    import numpy as np
    from conftest import load_notebook

    nb = load_notebook()
    nb.join_machines()
    random = np.random.RandomState(0)
    data = random.randint(0, 256, (count, 28, 28)).astype(np.uint8), random.randint(0, 47, count)
    held = data[0][:256], data[1][:256]
    with nb.all_devices() as found, nb.training_policy() as policy:
        net = nb.fresh_network(name, {}, 1)
        history = nb.run_training(net, data, held, nb.RECIPE, 2, 128, nb.AUGMENTATION, 1)
    loss = history[-1]["loss"]
    print(json.dumps([history[-1]["seconds"], loss, found, policy, net.count_params()]), flush=True)
    nb.leave_machines()


def free_port():
    """Return a TCP port that is free on loopback just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def measure(settings, name, count):
    """Return what `child` prints in processes started with `settings`: that of the first one."""
    processes = int(settings.get("PROCESSES", 1))
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **settings}
    if processes > 1:
        addresses = ",".join(f"127.0.0.1:{free_port()}" for _ in range(processes))
        environment["KERAS_DISTRIBUTION_JOB_ADDRESSES"] = addresses
        environment["KERAS_DISTRIBUTION_NUM_PROCESSES"] = str(processes)
    with tempfile.TemporaryFile("w+") as output:
        command = [sys.executable, __file__, "--child", "--images", str(count), "--network", name]
        started = [
            subprocess.Popen(
                command, stdout=output if number == 0 else subprocess.DEVNULL,
                env={**environment, "KERAS_DISTRIBUTION_PROCESS_ID": str(number)},
                stderr=subprocess.DEVNULL,
            )
            for number in range(processes)
        ]  # fmt: skip
        codes = [process.wait() for process in started]
        output.seek(0)
        lines = output.read().strip().splitlines()
    if any(codes):
        raise RuntimeError(f"{settings}: expected exit codes 0; found {codes}")
    return json.loads(lines[-1])


def main():
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2560)
    parser.add_argument("--network", default="custom")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.network, given.images)
        return
    print("| work shared by | devices | seconds per epoch | images/s | loss |")
    print("|---|---|---|---|---|")
    for title, settings in ROWS.items():
        seconds, loss, found, policy, size = measure(settings, given.network, given.images)
        steps = given.images // 128 * 128
        speed = f"{steps / seconds:,.0f}"
        print(f"| {title} | {found} | {seconds:.1f} | {speed} | {loss:.4f} |", flush=True)
    print(
        f"\n{given.images:,} images in batches of 128, {policy}, {os.cpu_count()} cores; "
        f"{size:,} parameters: {4 * size / 1e6:.1f} MB of gradients are summed in every step."
    )


if __name__ == "__main__":
    main()
