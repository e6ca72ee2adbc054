"""The noise budget: what do shots add to the noise that the minibatches of a model and its data make anyway?

For your own model and data, with the settings of config.py or any flags of train.py; --model_name results/RUN/model is
a model after training:

    python experiments/noise_budget.py --eval_size 0 [FLAGS]

prints the budget and writes results/noise_budget.json and .png. Gradients are of the evaluation examples: those of
training are no draw from all that there is, once a model has seen them. The published one, of all-MiniLM-L6-v2 and of a
model of DistilBERT's size with random weights, on word order (word_order.py), before and after training:

    python experiments/noise_budget.py --model FOLDER --sst2 FOLDER

writes results/reference/noise_budget/. docs/NOISE.md derives what is measured: b, the variance of a minibatch's
gradient over |G|^2; a, the noise of one shot over |g|^2; the shots S = a (1 + 1/b) at which both noises are equal; the
cosine 1 / sqrt(1 + a/S); tr(H Sigma), of which `independent` has all but the covariances of `graph`.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import lanes
import numpy as np
import torch
import word_order
from data import make_word_order
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

import config
import quantum_circuits
import train
from aer_engine import AerBackend
from harness import command_line
from harness.files import write_json
from report import figures, noise
from shot_allocation import one_shot_moments

BATCHES = 32  # whose gradients are compared
MEASURED = 3  # of them, which are measured with shots
SHOTS = (1, 3, 10, 30, 100, 1000)
CURVATURE_EXAMPLES, CURVATURE_DRAWS = 64, 12
SEED = 0
SHOWN = dict(zip(("graph", "product", "chain"), figures.COLOURS, strict=False))  # `literal` measures as `product` does


def main(command):
    if "--sst2" in sys.argv:
        return publish(lanes.arguments(__doc__.splitlines()[0]))
    (settings,) = command.runs
    budget = measure(settings, command.given)
    print("\n".join(in_words(budget)))
    out = Path(os.path.expanduser(settings.results_dir)) / "noise_budget"
    save({"your model and data": budget}, out)
    print(f"look at: {out}.png")
    return 0


def publish(given):
    """Make the published budgets, see the head of this file; what is there already is kept."""
    work, reference = lanes.ROOT / "results" / "noise_budget", lanes.ROOT / "results" / "reference" / "noise_budget"
    make_word_order(given.sst2, work / "data")
    distil = work / "distilbert-size"
    if not distil.exists():
        make_random_distilbert(distil, given.model)
    common = word_order.COMMON | {"dataset_name": work / "data" / "final", "seed": SEED, "update_rule": "classical"}
    cases = {
        "all-MiniLM-L6-v2": common | {"model_name": given.model.resolve(), "learning_rate": 1e-3},
        "DistilBERT's size": common | {"model_name": distil, "trained_weights": "all", "learning_rate": 1e-4},
    }
    path, budgets = reference / "noise_budget.json", {}
    if path.exists():
        budgets = json.loads(path.read_text(encoding="utf-8"))
    for name, flags in cases.items():
        for when in ("at the start", "after training"):
            if (key := f"{name}, {when}") not in budgets:
                if when == "after training":
                    flags = flags | {"model_name": trained_model(flags, work / f"{flags['model_name'].name}-trained")}
                budgets[key] = measure(config.load(lanes.flags_of(flags)), set(flags))
                save(budgets, path.with_suffix(""))
    for key, budget in budgets.items():
        print(f"\n{key}", *in_words(budget), sep="\n")
    return 0


def make_random_distilbert(folder, tokenizer_of):
    """Save a DistilBERT with random weights; its vocabulary is that of the tokenizer, BERT's."""
    from transformers import AutoTokenizer, DistilBertConfig, DistilBertForSequenceClassification

    torch.manual_seed(SEED)
    DistilBertForSequenceClassification(DistilBertConfig()).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_of).save_pretrained(folder)


def trained_model(flags, results_dir):
    """The folder of the model after train.py has trained it with these settings."""
    if not list(results_dir.glob("run_*/model")):
        command = [sys.executable, "train.py", *lanes.flags_of(flags), "--results_dir", str(results_dir)]
        subprocess.run(command, check=True, cwd=lanes.ROOT)
    return max(results_dir.glob("run_*/model"))


# --- Measuring


def measure(settings, given):
    """The noise budget of a run's model, data and selected weights, a dict. See the head of this file."""
    job = train.prepare(settings, given)
    steps = len(job.eval_set) // settings.batch_size
    if steps < 3:
        raise ValueError(
            f"EVAL_SIZE: {len(job.eval_set)} examples in batches of {settings.batch_size}: must make 3 at least"
        )
    number = min(BATCHES, steps)
    gradients = [gradient_of_batch(job, index) for index in tqdm(range(number), desc="batches", unit="batch")]
    inverse_b, error = noise.inverse_batch_noise(inner_products(gradients))
    budget = {
        **{"batch_size": settings.batch_size, "batches": number, "weights": list(job.weights)},
        **{"inverse_batch_noise": inverse_b, "standard_error": error, "circuits": []},
    }
    for circuit in quantum_circuits.CIRCUITS:
        for normalization in ("group", "tensor") if circuit in ("graph", "product") else ("group",):
            ansatz = quantum_circuits.build_ansatz(circuit, settings.num_qubits, settings.entangling_angle)
            row = budget_of(ansatz, normalization, gradients[:MEASURED])
            budget["circuits"].append({"circuit": circuit, "normalization": normalization, **row})
    return budget | {"curvature": measure_curvature(job, gradients[0])}


def gradient_of_batch(job, index):
    """Gradients of the selected weights for evaluation minibatch `index`, with dropout, a dict of tensors."""
    settings = job.settings
    rows = train.batches_of_step(len(job.eval_set), settings._replace(accumulation_steps=1), 1, index)[0]
    job.model.train()
    torch.manual_seed(index)
    return loss_gradients(job, rows)


def loss_gradients(job, rows, create_graph=False):
    """Gradients of the mean loss over the evaluation examples `rows`, of the selected weights, a dict of tensors."""
    inputs, labels = train.model_utils.collate(job.tokenizer, [job.eval_set[row] for row in rows], job.device)
    loss = torch.nn.functional.cross_entropy(job.model(**inputs).logits.float(), labels)
    found = torch.autograd.grad(loss, list(job.weights.values()), create_graph=create_graph)
    return dict(zip(job.weights, found, strict=True))


def inner_products(gradients):
    """Inner products of gradients, each a dict of tensors, float64 (number, number)."""
    products = np.zeros((len(gradients), len(gradients)))
    for name in gradients[0]:
        rows = torch.stack([gradient[name].flatten() for gradient in gradients]).double()
        products += (rows @ rows.T).cpu().numpy()
    return products


def dot(first, second):
    """The inner product of two gradients, dicts of tensors, a float."""
    return sum(torch.sum(first[name].double() * second[name].double()).item() for name in first)


def budget_of(ansatz, normalization, gradients):
    """What a circuit measures of some gradients, a dict, means over them: one_shot (a), allocation_gain, and cosines
    by shots, predicted and measured; response: -<Z_i> over x_i at x = 0."""
    backend, a, gains, cosines = AerBackend(ansatz), [], [], []
    n = ansatz.circuit.num_qubits
    for index, gradient in enumerate(gradients):
        variances = []
        for tensor in gradient.values():
            values = quantum_circuits.as_groups(tensor, n).double().numpy()
            scale = quantum_circuits.scale_of(values, np.abs(values).max() if normalization == "tensor" else None)
            variances.append(one_shot_moments(values, scale, ansatz.inverse)[0] * scale.max() ** 2)
        a.append(np.concatenate(variances).sum() / dot(gradient, gradient))
        best = sum(v.sum() / noise.allocation_gain(v) for v in variances if v.any())  # each weight has its own total
        gains.append(sum(v.sum() for v in variances) / best)
        cosines.append([])
        for shots in SHOTS:
            measured = measured_gradient(gradient, backend, shots, (SEED, index), normalization)
            size = math.sqrt(dot(measured, measured) * dot(gradient, gradient))
            cosines[-1].append(dot(measured, gradient) / size)
    return {
        **{"response": np.diag(ansatz.response).tolist(), "one_shot": float(np.mean(a))},
        **{"allocation_gain": float(np.mean(gains)), "shots": list(SHOTS)},
        "predicted_cosine": [noise.expected_cosine(np.mean(a) / shots) for shots in SHOTS],
        "measured_cosine": np.mean(cosines, axis=0).tolist(),
    }


def measured_gradient(gradient, backend, shots, seed, normalization="group"):
    """The gradient as the circuits measure it. seed: two ints; a dict of tensors."""
    return {
        name: quantum_circuits.quantum_parameter_update(
            tensor, backend, learning_rate=1.0, shots=shots, seed=(*seed, place), normalization=normalization
        )[0]
        for place, (name, tensor) in enumerate(gradient.items())
    }


def measure_curvature(job, gradient):
    """What the noise of one shot of `graph` does to the loss, a dict: squared_norm |g|^2, curvature g H g, and
    trace tr(H Sigma) with its standard error, of `joint` draws, with covariances, and of `independent` ones.

    tr(H Sigma) is the mean of d H d over noises d = measured - g. H: Hessian of the mean loss of some evaluation
    examples, without dropout, by products with vectors.
    """
    job.model.eval()
    with sdpa_kernel(SDPBackend.MATH):  # the other attention kernels have no second derivative
        first = loss_gradients(job, range(min(CURVATURE_EXAMPLES, len(job.eval_set))), create_graph=True)
        weights = list(job.weights.values())

        def bend(direction):
            along = sum((first[name] * direction[name]).sum() for name in first)
            products = torch.autograd.grad(along, weights, retain_graph=True)
            return dot(dict(zip(first, products, strict=True)), direction)

        settings = job.settings
        ansatz = quantum_circuits.build_ansatz("graph", settings.num_qubits, settings.entangling_angle)
        found = {"squared_norm": dot(gradient, gradient), "curvature": bend(gradient)}
        for name, rule in (("joint", "quantum"), ("independent", "independent")):
            backend, draws = AerBackend(ansatz, rule), []
            for draw in tqdm(range(CURVATURE_DRAWS), desc=f"curvature, {name}", unit="draw"):
                measured = measured_gradient(gradient, backend, 1, (SEED + 1, draw))
                draws.append(bend({key: measured[key] - tensor for key, tensor in gradient.items()}))
            found[name] = {
                "trace": float(np.mean(draws)),
                "standard_error": float(np.std(draws, ddof=1) / math.sqrt(len(draws))),
            }
    return found


# --- What it says


def shots_at_parity(row, budget):
    """Shots of a circuit, a row of the budget, whose noise is as large as the minibatch's; an estimate of |G|^2 below 0
    counts as 0."""
    return row["one_shot"] * (1 + max(budget["inverse_batch_noise"], 0))


def in_words(budget):
    """The budget as lines of text."""
    b, error = budget["inverse_batch_noise"], budget["standard_error"]
    lines = [
        f"minibatches of {budget['batch_size']}: |G|^2 over the variance of a minibatch's gradient, 1/b, is {b:.3f} "
        f"(standard error {error:.3f}, {budget['batches']} batches)",
        "circuit, scale of      a  equal at  1000 add  optimal  cosine at 1, 10, 1000 shots (predicted)",
    ]
    for row in budget["circuits"]:
        equal = shots_at_parity(row, budget)
        at = [SHOTS.index(shots) for shots in (1, 10, 1000)]
        cosines = "  ".join(f"{row['measured_cosine'][i]:.2f} ({row['predicted_cosine'][i]:.2f})" for i in at)
        lines.append(
            f"{row['circuit']:8} {row['normalization']:6}{row['one_shot']:9.1f}{equal:10.1f}{equal / 1000:10.1%}"
            f"{row['allocation_gain']:9.2f}  {cosines}"
        )
    bent = budget["curvature"]
    traces = [f"{bent[name]['trace']:.3g} +- {bent[name]['standard_error']:.2g}" for name in ("joint", "independent")]
    return [
        *lines,
        "a: noise of one shot over |g|^2. equal at: shots whose noise is as large as the minibatch's. 1000 add: the",
        "noise of 1000 shots over the minibatch's. optimal: noise at equal shots over noise at optimal allocation.",
        f"one shot of graph: tr(H Sigma) {traces[0]}, without its covariances {traces[1]}; |g|^2 "
        f"{bent['squared_norm']:.3g}, g H g {bent['curvature']:.3g}",
    ]


def save(budgets, path):
    """Write path.json and path.png of some budgets, a dict by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path.with_suffix(".json"), budgets)
    figure = figures.new_figure(9, 0.9 + 2.6 * len(budgets))
    axes = figure.subplots(len(budgets), 2, squeeze=False)
    for (left, right), (name, budget) in zip(axes, budgets.items(), strict=True):
        plot_noise(left, budget).set_title(name, fontsize=9, loc="left")
        plot_cosine(right, budget)
    note = "Left: below the dashed line shots add less noise than the minibatch has. Right: lines predicted, points "
    figures.add_legend(figure, axes[0][0], 3, f"{note}measured.")
    figures.add_title(figure, "How many shots are worth their money")
    figures.save_figure(figure, path.with_suffix(".png"))


def shown_rows(budget):
    """Rows of the budget that the figure shows, each with its line style: dotted with one scale for the tensor."""
    for row in budget["circuits"]:
        if row["circuit"] in SHOWN:
            yield row, {"color": SHOWN[row["circuit"]], "ls": ":" if row["normalization"] == "tensor" else "-"}


def plot_noise(ax, budget):
    """Plot shot noise over minibatch noise against shots, a line for each circuit."""
    shots = np.logspace(0, 3, 50)
    for row, style in shown_rows(budget):
        equal = shots_at_parity(row, budget)
        scale = ", one scale for the tensor" if row["normalization"] == "tensor" else ""
        ax.plot(shots, equal / shots, label=row["circuit"] + scale, **style)
    ax.axhline(1, color="black", lw=0.8, ls="--")
    ax.set(xscale="log", yscale="log", xlabel="shots", ylabel="shot / minibatch noise")
    ax.grid(alpha=0.3)
    return ax


def plot_cosine(ax, budget):
    """Plot the cosine of the measured gradient with the gradient against shots: lines predicted, points measured."""
    for row, style in shown_rows(budget):
        ax.plot(row["shots"], row["predicted_cosine"], **style)
        ax.plot(row["shots"], row["measured_cosine"], "o", color=style["color"], ms=4)
    ax.set(xscale="log", xlabel="shots", ylabel="cosine with the gradient", ylim=(0, 1.03))
    ax.grid(alpha=0.3)
    return ax


if __name__ == "__main__":
    arguments = [] if "--sst2" in sys.argv else sys.argv[1:]
    command_line.run_as_script(main, command_line.parse_or_exit(arguments))
