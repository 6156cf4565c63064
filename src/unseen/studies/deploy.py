"""Train the chosen learner for deployment and say in its facts how it was judged."""

from __future__ import annotations

from unseen.detection import Familiarity
from unseen.registry import Spec, detectors
from unseen.shifts import Shift
from unseen.studies.banks import banks_of
from unseen.studies.evaluate import choosing_half
from unseen.studies.plan import tunable
from unseen.studies.results import Results
from unseen.studies.tuned_detectors import candidates, choose
from unseen.studies.unfamiliar import Tuning
from unseen.training import Hardware, Predictor, fit
from unseen.training.data import TrainingData
from unseen.training.reference import Reference


def train_for_deployment(
    results: Results,
    shift: Shift,
    *,
    detector: str | Spec = "knn",
    coverage: float = 0.95,
    after: object = None,
    hardware: Hardware = Hardware(),
    tuning: Tuning | None = None,
) -> Predictor:
    """The chosen learner with its detector, abstention threshold and reference sample.

    tuning  what options of a detector that has ranges are chosen on, with half of ID validation: anew for this
            model, as they were for every judged one; the facts ("detector_tuning") say which

    When each domain was held out in turn, the model is trained on all of them: it will meet yet another one.
    When named domains were held out, it is the judged model itself (first seed), trained without them.
    """
    choice, plan = results.choice, results.plan
    every = len(results.asked) > 1
    options = {"after": after, "validation": plan["validation"], "seed": 0}
    split = (
        shift.split(**options)
        if every
        else shift.split(results.asked[0], unlabelled=plan.get("unlabelled"), **options)
    )
    data = TrainingData(split, choice.learner.backbone)
    predictor = fit(choice.learner, split, seed=0, data=data, hardware=hardware)
    network = predictor.network
    tried = {} if tuning is None or not tunable([detector]) else candidates(detector, tuning.draws)
    observers = [detectors.build(detector), *tried.values()]
    with banks_of(network, data, len(split.train) + len(split.validation), observers) as make:
        train, validation = make.of("train", observers), make.of("validation", observers)
        if tried and tuning is not None:
            stored = data.preprocessing.encode(tuning.inputs(split))
            inside = validation.take(choosing_half(data))
            found = choose(tried, train, inside, make.of_inputs(stored, observers))
            detector = found.spec
            predictor.facts["detector_tuning"] = {"data": tuning.data.name, **found.facts}
        predictor.familiarity = Familiarity.fit(detector, train, validation, coverage)
        predictor.reference = Reference.of(validation, predictor.familiarity)
    rows = results.table[results.table.method == choice.method]
    predictor.facts["evaluation"] = {
        "statement": (
            f"The same learner was trained with each domain held out in turn ({plan['seeds']} seeds) and judged on "
            "it; this model was then trained on all of them, so no number below is of this very model."
            if every
            else f"Trained without the unseen domains and judged on them ({plan['seeds']} seeds); selection rule: "
            f"{results.rule}."
        ),
        "unseen": rows[["domain", "accuracy", "low", "high", "n"]].to_dict("records"),
        "chosen_for": choice.reason,
        "pitfalls": results.pitfalls(),
    }
    predictor.facts["data"] = {"name": shift.name, "fingerprint": shift.fingerprint, "source": shift.source}
    return predictor
