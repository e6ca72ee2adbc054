"""Figures of circuits (response, covariance of the measured gradient) and of devices.

Plot functions take an Axes and return it. *_figure functions return a Figure and its title, device_figure the Figure.
"""

import itertools

import numpy as np

import quantum_circuits
from report.figures import COLOURS, add_legend, add_note, new_figure
from report.statistics import spread
from report.study import final, settings_of
from update_rules import RULES


def response_figure(settings):
    """The response of every circuit at the settings of a run."""
    n, angle, shots = settings["num_qubits"], settings["entangling_angle"], settings["shots"]
    figure = new_figure(10, 3.2)
    axes = figure.subplots(1, len(quantum_circuits.CIRCUITS), sharey=True, squeeze=False)[0]
    for ax, name in zip(axes, quantum_circuits.CIRCUITS, strict=True):
        plot_response(ax, quantum_circuits.build_ansatz(name, n, angle), shots, name)
    axes[0].set_ylabel(f"decoded mean of qubit {min(1, n - 1)}")
    add_legend(figure, axes[-1], 3, f"Bands: two standard deviations of the mean of {shots} shots.")
    return figure, f"Response of each circuit, {n} qubits"


def plot_response(ax, ansatz, shots, name):
    """Plot the decoded mean of one qubit against its encoded x, the other qubits at 0 and at x.

    Bands: two standard deviations of the mean of `shots` measurements.
    """
    n = ansatz.circuit.num_qubits
    shown = min(1, n - 1)  # not the first: in `chain` its neighbours disturb it least
    xs = np.linspace(-1, 1, 41)
    for others, label, style in ((0.0, "other qubits at 0", "-"), (1.0, "other qubits at x", "--")):
        colour = COLOURS[int(others)]
        groups = others * np.repeat(xs[:, None], n, axis=1)
        groups[:, shown] = xs
        probabilities = [quantum_circuits.outcome_probabilities(ansatz, group) for group in groups]
        means = (np.array(probabilities) @ quantum_circuits.minus_z(n) @ ansatz.inverse.T)[:, shown]
        covariances = [decoded_covariance(ansatz, quantum_circuits.noise_covariance(p)) for p in probabilities]
        deviations = np.sqrt([covariance[shown, shown] / shots for covariance in covariances])
        ax.plot(xs, means, color=colour, label=label, ls=style)
        ax.fill_between(xs, means - 2 * deviations, means + 2 * deviations, color=colour, alpha=0.15, lw=0)
    ax.plot([-1, 1], [-1, 1], color="black", lw=0.8, label="unbiased")
    ax.set(xlabel="encoded x", title=name)
    return ax


def covariance_figure(settings):
    """The covariance of the measured gradient of one group under the rules quantum and independent."""
    n, circuit = settings["num_qubits"], settings["circuit"]
    ansatz = quantum_circuits.build_ansatz(circuit, n, settings["entangling_angle"])
    covariance = quantum_circuits.noise_covariance(quantum_circuits.outcome_probabilities(ansatz, np.full(n, 0.6)))
    figure = new_figure(7.5, 3.8)
    left, right = figure.subplots(1, 2)
    plot_covariance(left, decoded_covariance(ansatz, covariance), "quantum")
    plot_covariance(right, decoded_covariance(ansatz, np.diag(np.diag(covariance))), "independent")
    return figure, f"Covariance of the measured gradient in one shot, {circuit}, every x = 0.6 and max |g| = 1"


def decoded_covariance(ansatz, covariance):
    """Covariance of the measured gradient, R^-1 Sigma R^-T, float64 (n, n), for max |g| = 1.

    covariance: Sigma, of the measured means, float64 (n, n); for one shot that is quantum_circuits.noise_covariance.
    """
    return ansatz.inverse @ covariance @ ansatz.inverse.T


def plot_covariance(ax, covariance, title):
    """Plot a covariance matrix with its numbers; the colour scale spans twice the largest off-diagonal entry."""
    n = len(covariance)
    covariance = np.round(covariance, 2) + 0.0  # without the sign of a zero
    top = max(2 * np.abs(covariance - np.diag(np.diag(covariance))).max(), 0.01)
    ax.imshow(covariance, cmap="PuOr", vmin=-top, vmax=top)
    for (row, column), value in np.ndenumerate(covariance):
        colour = "white" if abs(value) > 0.6 * top else "black"
        ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    ax.set(title=title, xlabel="qubit", ylabel="qubit", xticks=range(n), yticks=range(n))
    return ax


def group_by_device(runs):
    """Runs of the rule quantum by device, a dict of name -> {seed: run}.

    A name is BACKEND and, on lines of their own, whether its noise is off or its readout mitigated.
    """
    devices = {}
    for run in runs:
        s = run["settings"]
        if s["update_rule"] == "quantum":
            extras = ["no noise"] * (s["device_noise"] == "off") + ["mitigated"] * (s["mitigation"] == "readout")
            devices.setdefault("\n".join([s["backend"], *extras]), {})[s["seed"]] = run
    return devices


def device_figure(arms):
    """Accuracy, where it differs, cosine and response of each device; arms: as group_by_device returns them."""
    columns = {
        "final accuracy": lambda run: final(run, "accuracy"),
        "cosine to the whole gradient": lambda run: run["statistics"]["mean_cosine"],
    }
    shown = {k: v for k, v in columns.items() if len({str(list(map(v, arm.values()))) for arm in arms.values()}) > 1}
    figure = new_figure(4 + 3.5 * len(shown), 3.8)
    *axes, last = figure.subplots(1, len(shown) + 1, squeeze=False)[0]
    for index, (ax, (label, value)) in enumerate(zip(axes, shown.items(), strict=True)):
        plot_by_device(ax, arms, value, label)
        if index:
            ax.set_yticklabels([])
    plot_device_response(last, arms)
    add_note(figure, "Bars: Student's 95% interval over the seeds. Points: random groups; a slope below 1 is a bias.")
    return figure


def plot_by_device(ax, arms, value, label):
    """Plot mean and Student's 95% interval over the seeds of value(run), a line per arm."""
    for place, arm in enumerate(arms.values()):
        mean, _, interval = spread([value(run) for run in arm.values()])
        half = interval[1] - mean if interval else 0
        ax.errorbar(mean, place, xerr=half, color=RULES["quantum"].colour, marker="o", capsize=4)
    ax.set_yticks(range(len(arms)), [f"{name}\nn = {len(arm)}" for name, arm in arms.items()], fontsize=8)
    ax.set_ylim(len(arms) - 0.5, -0.5)
    ax.set_xlabel(label)
    ax.grid(axis="x", alpha=0.3)
    return ax


def plot_device_response(ax, arms):
    """Plot decoded means of random groups against their x, measured now on every simulated device, with their slope."""
    colours = itertools.cycle(COLOURS)
    for label, arm in arms.items():
        settings = settings_of(arm)
        if settings["backend"] == "aer" or settings["backend"].startswith("ibm"):
            continue
        x, decoded = measure_random_groups(settings)
        slope = float((decoded * x).sum() / (x * x).sum())
        text = f"{label.replace(chr(10), ' ')}: slope {slope:.2f}"
        ax.plot(x.ravel(), decoded.ravel(), ".", ms=3, color=next(colours), label=text)
    ax.plot([-1, 1], [-1, 1], color="black", lw=0.8)
    ax.set(xlabel="encoded x", ylabel="decoded mean")
    ax.legend(fontsize=7, frameon=False)
    return ax


def measure_random_groups(settings, groups=24):
    """(x, decoded means), both float64 (groups, n): random x in [-1, 1] measured on the device of a run's settings.

    Raises ValueError if there is no such device.
    """
    import devices  # optional: only a study of devices needs qiskit-ibm-runtime

    n = settings["num_qubits"]
    ansatz = quantum_circuits.build_ansatz(settings["circuit"], n, settings["entangling_angle"])
    device, _ = devices.open_device(settings["backend"], n, settings["device_noise"] == "on")
    backend = devices.DeviceBackend(ansatz, device, mitigation=settings["mitigation"])
    x = np.random.default_rng(0).uniform(-1, 1, (groups, n))
    means, *_ = backend.measure(x, settings["shots"], (0, 1, 0))
    return x, means @ ansatz.inverse.T
