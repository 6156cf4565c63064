"""What one seed of the reproduction of coherent gradients measures, on digits with wrong labels."""

from __future__ import annotations

import numpy as np

from unseen.measures.coherence import coherence
from unseen.measures.learning_order import LearningOrder
from unseen.networks.example_gradients import ExampleGradients
from unseen.papers.base import Row
from unseen.papers.coherent_gradients import (
    AGGREGATORS,
    CHOSEN,
    EARLY,
    EPOCHS,
    LATER,
    MATCHED,
    NOISES,
    RATES,
    SHORT,
    TEST,
    at_epoch,
)
from unseen.papers.noisy_digits import Accuracies, NoisyDigits, Perceptrons, Settings, train
from unseen.updates.coherent import MedianOfMeans, Winsorized


def coherence_rows(data: NoisyDigits, seed: int) -> list[Row]:
    """m-coherence along training with four shares of wrong labels, and who is learned first."""
    from sklearn.metrics import roc_auc_score

    stack, part = [Settings(noise) for noise in NOISES.values()], data.parts["train"]
    labels = [data.labels(settings.noise)[part] for settings in stack]
    wrong = [own != data.y[part] for own in labels]
    accuracies, half = Accuracies(data, stack), list(NOISES).index("noise 50 %")
    order, epoch = LearningOrder(), accuracies.steps
    curves: list[dict[int, tuple[float, float]]] = [{} for _ in stack]  # step -> m-coherence, accuracy
    parts_at_half: list[tuple[float, float]] = []

    def observe(step: int, networks: Perceptrons) -> None:
        accuracies(step, networks)
        often = step < 2 * epoch and step % (epoch // 5 or 1) == 0  # real labels are half fitted early
        if step % epoch and not often:
            return
        fitted = networks.predictions(data.x[part])
        for index, own in enumerate(labels):
            split = wrong[index] if index == half else None
            report = coherence(ExampleGradients(networks.run(index)), (data.x[part], own), split)
            accuracy = float((fitted[index] == own).float().mean())
            curves[index][step] = report.whole.m_coherence, accuracy
            if index == half and step % epoch == 0 and step <= 8 * epoch:
                parts_at_half.append(tuple(report.groups[g].m_coherence for g in ("False", "True")))  # type: ignore[arg-type]
        if step % epoch == 0:
            order.observe(step // epoch, fitted[half] == labels[half])

    train(data, stack, seed, observe)
    rows = []
    for index, name in enumerate(NOISES):
        curve = curves[index]
        whole = {step // epoch: value for step, (value, _) in curve.items() if step % epoch == 0}
        nearest = min(curve.values(), key=lambda found: abs(found[1] - 0.5))
        values = {
            EARLY: float(np.mean([value for number, value in whole.items() if number <= 8])),
            MATCHED: nearest[0],
            TEST: float(accuracies.of("test", index)[-1]),
            "training": float(accuracies.of("train", index)[-1]),
            **{at_epoch(number): whole[number] for number in EPOCHS if number in whole},
        }
        later = [value for number, value in whole.items() if number > 8]
        rows += [Row(name, metric, value) for metric, value in values.items()]
        rows += [Row(name, LATER, max(later))] if later else []
    pristine, corrupted = np.mean(parts_at_half, 0)
    learned = np.minimum(order.first_learned, data.protocol.epochs + 1)
    rows.append(Row("noise 50 %", "pristine : corrupted", float(pristine / corrupted)))
    rows.append(Row("noise 50 %", "order", float(roc_auc_score(wrong[half].numpy(), learned))))
    return rows


def aggregation_rows(data: NoisyDigits, seed: int) -> list[Row]:
    """Plain SGD, its regularised relatives and robust aggregators on half-wrong and on clean labels."""
    found: dict[str, dict[str, float]] = {}

    def tuned(name: str, stack: list[Settings], accuracies: Accuracies, runs: list[int]) -> int:
        """Note the better of some runs at 50 % noise, and the better ones' result without noise."""
        best = {}
        for noise in (0.5, 0.0):
            own = [run for run in runs if stack[run].noise == noise]
            best[noise] = max(own, key=lambda run: float(accuracies.of("validation", run)[-3:].mean()))
        run = best[0.5]
        tests = accuracies.of("test", run)
        found[name] = {
            TEST: float(tests[-1]),
            "best epoch": float(tests.max()),
            "wrong labels": accuracies.on_wrong_labels(run),
            "validation": float(accuracies.of("validation", run)[-3:].mean()),
            "clean": float(accuracies.of("test", best[0.0])[-1]),
        }
        return run

    options = {
        "sgd": [{"rate": rate} for rate in RATES],
        "weight decay": [{"decay": decay} for decay in (0.001, 0.003, 0.01)],
        "label smoothing": [{"smoothing": smoothing} for smoothing in (0.1, 0.2, 0.5)],
    }
    stack = [Settings(n, **one) for n in (0.5, 0.0) for some in options.values() for one in some]
    accuracies = Accuracies(data, stack)
    train(data, stack, seed, accuracies)
    for place, name in enumerate(options):
        own = range(3 * place, 3 * place + 3)
        tuned(name, stack, accuracies, [*own, *(run + len(stack) // 2 for run in own)])
    validation = np.stack([accuracies.of("validation", run).numpy() for run in range(3)])
    stopped, epoch = (int(place) for place in np.unravel_index(validation.argmax(), validation.shape))
    found["early stopping"] = {
        TEST: float(accuracies.of("test", stopped)[epoch]),
        "wrong labels": accuracies.on_wrong_labels(stopped, epoch),
        "validation": float(validation.max()),
    }

    stack = [Settings(noise, rate) for noise in (0.5, 0.0) for rate in RATES]
    steps = {}
    for name in AGGREGATORS:
        rule = MedianOfMeans() if name == "m3" else Winsorized(int(name.rpartition("-")[2]))
        accuracies = Accuracies(data, stack)
        norms = train(data, stack, seed, accuracies, rule=rule)
        run = tuned(name, stack, accuracies, list(range(6)))
        steps[name] = stack[run], norms[:, run : run + 1]
    chosen = max(AGGREGATORS, key=lambda name: found[name]["validation"])
    found[CHOSEN] = dict(found[chosen])

    settings, longest = steps[chosen]
    accuracies = Accuracies(data, [settings])
    train(data, [settings], seed, accuracies, longest=longest)
    found[SHORT] = {
        TEST: float(accuracies.of("test", 0)[-1]),
        "best epoch": float(accuracies.of("test", 0).max()),
        "wrong labels": accuracies.on_wrong_labels(0),
    }
    return [Row(name, metric, value) for name, own in found.items() for metric, value in own.items()]
