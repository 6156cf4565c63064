"""VL2V-ADiP: align a projection of a pretrained student with a vision-language teacher, then distill underneath it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from unseen.distillation.cutmix import CutMix
from unseen.distillation.embedding_losses import CosineAlignment
from unseen.distillation.embedding_objective import Augment, EmbeddingObjective
from unseen.distillation.environments import Environments
from unseen.distillation.student_training import evaluation, train_stage
from unseen.distillation.teachers import Teacher, check_embeddings
from unseen.distillation.text_classifier import Embedder, check_features, text_classifier
from unseen.errors import InputError, nearest
from unseen.networks import Network
from unseen.networks.zero_shot import TEMPLATES
from unseen.registry import Spec
from unseen.shifts import Split
from unseen.shifts.sampling import derive_seed
from unseen.training.data import TrainingData
from unseen.training.learner import Learner
from unseen.training.system import seeded

StageName = Literal["align", "distill", "joint"]
STAGES = ("align", "distill", "joint")

DEFAULTS: dict[str, Any] = {"steps": 5001, "batch_size": 32, "learning_rate": 5e-5, "evaluations": 17}
"""The official launch scripts': Adam, 32 images of every environment a step, validation every 300 steps."""


class VLDistiller:
    """A small classifier from a pretrained student and a teacher of images and texts that is only asked.

    Embeddings z = P f(x) / |P f(x)| are drawn to the teacher's of the image and to that of the class's text:
    -weight cos(z, v) - (1 - weight) cos(z, t_y), in all stages. Logits are the teacher's scale times cos(z, t_c).

    student          module from inputs to features (N, F); copied, never changed
    teacher          a `Teacher`, or any object with encode_image and encode_text
    class_names      C different names, in the order of the labels; put into `templates`
    text_embeddings  (C, D) instead of names; neither: those of `Teacher.from_embeddings`
    weight           lambda in [0, 1]; the code's authors advise 0.1 for learning within one distribution
    stages           "align" trains P, "distill" the student under a frozen P, "joint" both at once
    averaging        of the last stage: None, "swad", "ema" or any other registered one
    mix              a `CutMix`, or None; the teacher sees the mixed images, so it must not cache
    augment          (inputs, generator) -> inputs as the student sees them. A teacher that caches is asked once for
                     every clean example, another one in every step for the view that the student sees
    projection       P to start from; None: a new one
    project          whether there is a P; None: where a stage trains it or F differs from D
    per_stage        stage -> settings of its own, such as {"align": {"learning_rate": 1e-3}}
    settings         fields of `Learner` for all stages: steps, batch_size (examples of every environment), optimizer,
                     learning_rate, weight_decay, schedule, clip, update, keep, ...; see `DEFAULTS`

    After `fit`: `model_`, `history_` (a row per stage, step, domain, metric), `accuracy_` where unseen data were
    given. A stage hands on the weights of the best accuracy on validation data (without these, the last ones), also
    where the result is averaged, as in the official code. Batch normalisation keeps its statistics throughout.
    Addepalli et al. 2024, arXiv 2310.08255.
    """

    model_: Network
    history_: list[dict[str, Any]]
    accuracy_: pd.DataFrame

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        class_names: Sequence[str] | None = None,
        *,
        text_embeddings: Tensor | None = None,
        weight: float = 0.5,
        stages: Sequence[StageName] = ("align", "distill"),
        averaging: str | Spec | None = None,
        mix: CutMix | None = None,
        augment: Augment | None = None,
        projection: nn.Linear | None = None,
        project: bool | None = None,
        templates: Sequence[str] = TEMPLATES,
        per_stage: Mapping[str, Mapping[str, Any]] | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        **settings: Any,
    ):
        self.student, self.teacher, self.class_names = student, Teacher.of(teacher), class_names
        self.loss, self.mix, self.augment, self.templates = CosineAlignment(weight), mix, augment, templates
        self.stages, self.seed, self.device = tuple(stages), seed, torch.device(device)
        self.projection, self.project = projection, project
        self._check_stages()
        self.learners = self._learners(averaging, settings, per_stage or {})
        if mix is not None and self.teacher.cache:
            raise InputError(
                "mix",
                "makes images that a teacher with cached embeddings does not know",
                "Give Teacher(encoder, cache=False), or no mix.",
            )
        self.texts = class_texts(self.teacher, class_names, text_embeddings, templates)

    @property
    def teacher_queries(self) -> int:
        """How many images the teacher has been given so far."""
        return self.teacher.image_queries

    def fit(self, data: Any, val: Any = None, unseen: Any = None) -> Network:
        """Train all stages and return a network in evaluation mode whose forward gives class logits (N, C).

        data    environments, see `Environments.of`: a dataset or loader, a list or mapping of them, a `Split`
        val     held-out data of the same environments; for a split, default its validation rows
        unseen  further environments to judge by: `accuracy_` then holds their accuracies and those on `val`
        """
        if val is None and isinstance(data, (Split, TrainingData)):
            data = TrainingData(data) if isinstance(data, Split) else data
            val = Environments.of_rows(data, "validation")
        environments = Environments.of(data)
        validation = None if val is None else Environments.of(val)
        self._check_selection(validation)
        environments.check_labels(len(self.texts))
        network = self._network(environments)
        terms = {"vl2v": (1.0, self.loss)}
        objective = EmbeddingObjective(
            terms, self.teacher, self.texts.to(self.device), augment=self.augment, mix=self.mix
        )
        objective.remember(environments)
        self.history_ = []
        for number, stage in enumerate(self.stages):
            result = train_stage(
                network,
                objective,
                environments,
                validation,
                self.learners[number],
                seed=derive_seed(self.seed, number),
                enter_training_mode=_choose_trained(network, stage),
            )
            network.load_state_dict(result.averaged or result.best)
            self.history_ += [{"stage": stage, **record} for record in result.history]
        network.requires_grad_(True).eval()
        network.head.requires_grad_(False)
        self.model_ = network
        if unseen is not None:
            self.accuracy_ = self._accuracies({"validation": validation, "unseen": Environments.of(unseen)})
        return network

    def classifier(self, class_names: Sequence[str] | None = None, texts: Tensor | None = None) -> Network:
        """After `fit`: the trained embedder with a head for other classes, from names or text embeddings (C, D)."""
        if not hasattr(self, "model_"):
            raise InputError("VLDistiller", "is not fitted", "Call fit first.")
        found = class_texts(self.teacher, class_names, texts, self.templates)
        check_embeddings("text embeddings", found, self.texts.shape[1])
        return text_classifier(self.model_.featurizer, found.to(self.device), self.teacher.logit_scale).eval()

    def _check_stages(self) -> None:
        for stage in self.stages:
            if stage not in STAGES:
                raise InputError(f"stage {stage!r}", "is not known", nearest(stage, STAGES))
        if not self.stages:
            raise InputError("stages", "are none", 'Give ("align", "distill").')
        if self.project is False and (self.projection is not None or {"align", "joint"} & {*self.stages}):
            raise InputError(
                "project",
                "is False, but a projection is given or trained",
                'Leave it, or give stages=("distill",) alone.',
            )

    def _learners(
        self, averaging: str | Spec | None, settings: dict[str, Any], per_stage: Mapping[str, Mapping]
    ) -> list[Learner]:
        for stage in per_stage:
            if stage not in self.stages:
                raise InputError(
                    f"per_stage {stage!r}", "is no stage of this run", nearest(stage, self.stages)
                )
        learners = [Learner(**{**DEFAULTS, **settings, **per_stage.get(s, {})}) for s in self.stages]
        if averaging is not None:
            learners[-1] = learners[-1].replace(averaging=averaging)
        for learner in learners:
            learner.check()
        return learners

    def _check_selection(self, validation: Environments | None) -> None:
        averaging = self.learners[-1].averaging
        if validation is None and averaging is not None and averaging.name == "swad":
            raise InputError(
                "val", "is None, but swad follows the validation loss", "Give held-out examples."
            )

    def _network(self, data: Environments) -> Network:
        student = copy.deepcopy(self.student).to(self.device).eval().requires_grad_(True)
        with torch.no_grad():
            example = data.batch(torch.zeros(1, dtype=torch.int64)).to(self.device)
            features = check_features(student(example.x)).shape[1]
        dimension = self.texts.shape[1]
        projection = copy.deepcopy(self.projection)
        if projection is not None and (projection.in_features, projection.out_features) != (
            features,
            dimension,
        ):
            raise InputError(
                "projection",
                f"maps {projection.in_features} to {projection.out_features} dimensions",
                f"Give nn.Linear({features}, {dimension}): from the student's features to the teacher's space.",
            )
        trains = any(stage != "distill" for stage in self.stages)
        if projection is None and (features != dimension or trains or self.project):
            if self.project is False:
                raise InputError(
                    "project",
                    f"is False, but the student has {features} features and the teacher {dimension}",
                    "Leave it.",
                )
            if self.stages[0] == "distill":
                raise InputError(
                    "stages",
                    "distill under a projection that nothing has aligned",
                    'Put "align" first, or give a projection.',
                )
            with seeded(self.seed):
                projection = nn.Linear(features, dimension)
        embedder = Embedder(student, None if projection is None else projection.to(self.device))
        return text_classifier(embedder, self.texts.to(self.device), self.teacher.logit_scale)

    def _accuracies(self, environments: Mapping[str, Environments | None]) -> pd.DataFrame:
        rows = []
        for role, data in environments.items():
            if data is not None:
                found = evaluation(self.model_, data, 0, role)
                rows += [record for record in found if record["metric"] == "accuracy"]
        table = pd.DataFrame(rows)
        return table[["role", "domain", "n", "value"]].rename(columns={"value": "accuracy"})


def class_texts(
    teacher: Teacher,
    class_names: Sequence[str] | None,
    embeddings: Tensor | None,
    templates: Sequence[str] = TEMPLATES,
) -> Tensor:
    """(C, D) of the classes: embeddings as given, or of names in templates, or those the teacher brought along."""
    if class_names is not None and embeddings is not None:
        raise InputError("text_embeddings", "come with class_names, too", "Give one of them.")
    if class_names is not None:
        names = list(class_names)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError("class_names", f"name {twice[0]!r} twice", "Give each class a name of its own.")
        return teacher.texts(names, templates)
    embeddings = teacher.class_embeddings if embeddings is None else embeddings
    if embeddings is None:
        raise InputError("class_names", "are missing", "Give names of the classes, or their text_embeddings.")
    check_embeddings("text embeddings", embeddings, teacher.dimension)
    return embeddings.detach().float()


def _choose_trained(network: Network, stage: str) -> Callable[[], None]:
    """Let the stage's weights alone require a gradient; gives what puts parts into their modes for a step."""
    embedder = network.featurizer
    assert isinstance(embedder, Embedder)
    network.requires_grad_(False)
    trained = {"align": embedder.projection, "distill": embedder.student}.get(stage, embedder)
    assert trained is not None
    trained.requires_grad_(True)

    def enter() -> None:
        network.eval()
        trained.train()
        for layer in trained.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.eval()

    return enter
