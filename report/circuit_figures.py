"""Figures of circuits (response, covariance of the measured gradient) and of devices.

Plot functions take an Axes and return it, *_figure functions return a Figure.
"""

import itertools

import numpy as np

import quantum_circuits
from report import labels
from report.figures import COLOURS, add_legend, add_note, new_figure, one_line, wrapped
from report.statistics import spread
from report.study import final, rule_of, settings_of
from update_rules import RULES

MOST_PANELS = 4  # of circuits
OF_DEVICES = {"backend", "device_groups", "device_selection", "device_noise", "mitigation"}
OF_DEVICES |= {"dynamical_decoupling", "twirling"}


def figures_of_circuits(runs):
    """Yield (name, Figure, title) of what the circuits that these runs used do to a gradient; nothing if none did."""
    circuits = used_circuits(runs)
    if circuits:
        yield "response", response_figure(circuits), "Response of the circuits in use"
    drawn = [(f"{rule}: {text}", rule, ansatz) for text, (ansatz, found) in circuits.items() for rule in found["rules"]]
    if drawn := [panel for panel in drawn if RULES[panel[1]].draws_shots][:MOST_PANELS]:
        figure = new_figure(3.6 * len(drawn), 3.8)
        for ax, (text, rule, ansatz) in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
            plot_covariance(ax, covariance_of(ansatz, rule), text)
        yield "covariance", figure, "Covariance of the measured gradient in one shot, every x = 0.6 and max |g| = 1"


def used_circuits(runs):
    """The circuits of runs, a dict of text -> (ansatz, found); found: rules (list) and shots (the most, None: exact).

    One that cannot be built, by whatever its function raises, is left out with a line.
    """
    names, kept = ("circuit", "num_qubits", "entangling_angle"), {}
    for run in runs:
        settings, rule = run["settings"], run["settings"]["update_rule"]
        if RULES[rule].measures:
            found = kept.setdefault(tuple(settings[name] for name in names), {"rules": [], "shots": None})
            found["rules"] += [rule] * (rule not in found["rules"])
            if RULES[rule].draws_shots:
                found["shots"] = max(found["shots"] or 0, settings["shots"])
    differing = labels.varying([dict(zip(names, key, strict=True)) for key in kept])
    circuits = {}
    for key, found in kept.items():
        extras = [labels.in_words(name, value) for name, value in zip(names, key, strict=True) if name in differing]
        text = ", ".join([key[0], *(extra for extra in extras if not extra.endswith("circuit"))])
        try:
            circuits[text] = quantum_circuits.build_ansatz(*key), found
        except Exception as error:  # a user's own circuit may raise anything
            print(f"  no response of {text}: {one_line(error)}")
    return circuits


def response_figure(circuits):
    """The response of each circuit, a panel each, at most four. circuits: as used_circuits returns them."""
    shown = list(circuits.items())[:MOST_PANELS]
    figure = new_figure(max(3 * len(shown), 5), 3.2)
    axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for ax, (text, (ansatz, found)) in zip(axes, shown, strict=True):
        shots = found["shots"]
        plot_response(ax, ansatz, shots, f"{text}\n{labels.in_words('shots', shots) if shots else 'exact'}")
    low, high = axes[0].get_ylim()
    axes[0].set_ylim(max(low, -2), min(high, 2))
    axes[0].set_ylabel("decoded mean of a qubit")
    note = "Bands: two standard deviations of the mean of so many shots; those beyond ±2 go on."
    if len(circuits) > len(shown):
        note += f" The first {len(shown)} of {len(circuits)} circuits."
    add_legend(figure, axes[-1], 3, note)
    return figure


def plot_response(ax, ansatz, shots, name):
    """Plot the decoded mean of one qubit against its encoded x, the other qubits at 0 and at x.

    Bands: two standard deviations of the mean of `shots` measurements; None draws none.
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
        ax.plot(xs, means, color=colour, label=label, ls=style, lw=1.5 if others else 3)
        if shots:
            covariances = [decoded_covariance(ansatz, quantum_circuits.noise_covariance(p)) for p in probabilities]
            half = 2 * np.sqrt([covariance[shown, shown] / shots for covariance in covariances])
            ax.fill_between(xs, means - half, means + half, color=colour, alpha=0.15, lw=0)
    ax.plot([-1, 1], [-1, 1], color="black", lw=0.8, label="unbiased")
    ax.set_xlabel("encoded x")
    ax.set_title(name, fontsize=9)
    return ax


def covariance_of(ansatz, rule):
    """The covariance of the measured gradient of one group in one shot under a rule, float64 (n, n): all x = 0.6."""
    n = ansatz.circuit.num_qubits
    covariance = quantum_circuits.noise_covariance(quantum_circuits.outcome_probabilities(ansatz, np.full(n, 0.6)))
    return decoded_covariance(ansatz, np.diag(np.diag(covariance)) if rule == "independent" else covariance)


def decoded_covariance(ansatz, covariance):
    """Covariance of the measured gradient, R^-1 Sigma R^-T, float64 (n, n), for max |g| = 1.

    covariance: Sigma, of the measured means, float64 (n, n); for one shot that is quantum_circuits.noise_covariance.
    """
    return ansatz.inverse @ covariance @ ansatz.inverse.T


def plot_covariance(ax, covariance, title):
    """Plot a covariance matrix with its numbers; the colour scale spans twice the largest off-diagonal entry."""
    n = len(covariance)
    covariance = np.where(np.abs(covariance) < 1e-9 * np.abs(covariance).max(), 0, covariance)  # zero but for rounding
    top = max(2 * np.abs(covariance - np.diag(np.diag(covariance))).max(), 0.01)
    ax.imshow(covariance, cmap="PuOr", vmin=-top, vmax=top)
    for (row, column), value in np.ndenumerate(covariance):
        colour = "white" if abs(value) > 0.6 * top else "black"
        ax.text(column, row, f"{value:.3g}", ha="center", va="center", fontsize=8, color=colour)
    ax.set_title("\n".join(wrapped([title], 30)), fontsize=9)
    ax.set(xlabel="qubit", ylabel="qubit", xticks=range(n), yticks=range(n))
    return ax


def figures_of_devices(arms):
    """Yield (name, Figure, title) of the devices that arms of the rule quantum compare; nothing if there is one device,
    or, with a line that says why, if one cannot be measured now."""
    devices = group_by_device(arms)
    if len(devices) > 1:
        try:
            yield "devices", device_figure(devices), "What the noise of a device does"
        except (ValueError, OSError, ImportError) as error:
            print(f"  no devices: {one_line(error)}")


def group_by_device(arms):
    """Arms of the rule quantum by device, a dict of name -> arm: of those that are alike in all else, the most.

    A name is BACKEND and, on lines of their own, whether its noise is off or its readout mitigated.
    """
    groups = {}
    for arm in arms.values():
        if rule_of(arm) == "quantum":
            s = settings_of(arm)
            extras = ["no noise"] * (s["device_noise"] == "off") + ["mitigated"] * (s["mitigation"] == "readout")
            rest = {n: v for n, v in labels.used_settings(s).items() if n not in OF_DEVICES}
            groups.setdefault(str(rest), {})["\n".join([s["backend"], *extras])] = arm
    return max(groups.values(), key=len, default={})


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
        half = interval[1] - mean if interval else np.nan  # one seed has no bar
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


def measure_random_groups(settings):
    """(x, decoded means), both float64 (24, n): random x in [-1, 1] measured on the device of a run's settings.

    Raises ValueError if there is no such device.
    """
    import devices  # optional: only a study of devices needs qiskit-ibm-runtime

    n = settings["num_qubits"]
    ansatz = quantum_circuits.build_ansatz(settings["circuit"], n, settings["entangling_angle"])
    device, _ = devices.open_device(settings["backend"], n, settings["device_noise"] == "on")
    options = {name: settings[name] for name in ("mitigation", "dynamical_decoupling", "twirling")}
    backend = devices.DeviceBackend(ansatz, device, **options)
    x = np.random.default_rng(0).uniform(-1, 1, (24, n))
    means, *_ = backend.measure(x, settings["shots"], (0, 1, 0))
    return x, means @ ansatz.inverse.T
