"""Fine-tune like pretraining: a dual encoder is tuned by the contrastive loss that made it, on captions of labels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from unseen.errors import InputError
from unseen.networks.dual_encoder import DualEncoder
from unseen.prompts.features import image_features
from unseen.prompts.negative_labels import TEMPLATE, encode_names
from unseen.prompts.text import check_names
from unseen.shifts.sampling import derive_seed
from unseen.training.fit import seed_dropout
from unseen.training.learner import Learner
from unseen.training.system import build_optimizer


class ContrastiveTuner:
    """FLYP (Goyal et al., CVPR 2023, arXiv 2212.00638): both towers are trained on (image, caption) of a class.

    clip         a `DualEncoder` that is a module; a copy of it, `tuned`, is trained
    class_names  C names; a caption is a template with the class's name in it, drawn anew for each image and step
    templates    texts with {} for the name
    learner      its optimizer, rates, schedule, steps and batch size; the rest is not read. Default: AdamW at 1e-5,
                 weight decay 0.1, warm-up and cosine, 500 steps of 512 images, as in the paper's code

    Two images of one class in a batch count as negatives of each other's captions, as in pretraining (section 3).
    `logit_scale` stays as it is; the paper's code trains it. To keep more of the zero-shot model's robustness, average
    the two weights: `unseen.merging`'s linear method, or `WiSEFT`.
    """

    tuned: DualEncoder

    def __init__(
        self,
        clip: DualEncoder,
        class_names: Sequence[str],
        templates: Sequence[str] = (TEMPLATE,),
        learner: Learner | None = None,
        *,
        seed: int = 0,
    ):
        if not isinstance(clip, nn.Module) or not any(True for _ in clip.parameters()):
            raise InputError(
                f"encoder {type(clip).__name__}", "has no weights to tune", "Give a torch module."
            )
        for template in templates:
            if "{}" not in template:
                raise InputError(
                    f"template {template!r}", "has no place for the class name", "Write {} there."
                )
        if not templates:
            raise InputError("templates", "are none", 'Give one at least, such as "a photo of a {}."')
        self.class_names, self.templates = check_names("class names", class_names), tuple(templates)
        self.tuned = copy.deepcopy(clip).requires_grad_(True)  # type: ignore[attr-defined]
        self.learner = learner or Learner(
            optimizer="adamw", learning_rate=1e-5, weight_decay=0.1, schedule="cosine", warmup=0.1,
            steps=500, batch_size=512,
        )  # fmt: skip
        self.seed = seed
        self.history: list[float] = []

    def fit(self, images: Tensor, labels: Tensor) -> Self:
        """Tune on images (N, ...) as the encoder takes them and labels (N,), indices into the class names."""
        count, classes = len(images), len(self.class_names)
        if len(labels) != count or count < 2:
            raise InputError(
                "labels", f"are {len(labels)} for {count} images", "Give one each, of two at least."
            )
        if labels.is_floating_point() or int(labels.min()) < 0 or int(labels.max()) >= classes:
            raise InputError("labels", "are no classes", f"Number the classes from 0 to {classes - 1}.")
        module, learner = self.tuned, self.learner
        assert isinstance(module, nn.Module)
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        device = trained[0].device
        optimizer = build_optimizer(learner, trained)
        self.history = []
        module.train()
        with torch.random.fork_rng():  # dropout draws from the global generator
            for step in range(learner.steps):
                for group in optimizer.param_groups:
                    group["lr"] = learner.learning_rate_at(step)
                generator = torch.Generator().manual_seed(derive_seed(self.seed, step))
                seed_dropout(derive_seed(self.seed, step, 1), device)
                rows = torch.randperm(count, generator=generator)[: learner.batch_size]
                loss = contrastive_loss(
                    self.tuned.encode_image(images[rows].to(device)),
                    self.tuned.encode_text(self.captions(labels[rows], generator)),
                    self.tuned.logit_scale,
                )
                optimizer.zero_grad()
                loss.backward()
                if learner.clip is not None:
                    nn.utils.clip_grad_norm_(trained, learner.clip)
                optimizer.step()
                self.history.append(float(loss.detach()))
        module.eval()
        return self

    def captions(self, labels: Tensor, generator: torch.Generator) -> list[str]:
        """A caption for each label, of a template drawn at random."""
        drawn = torch.randint(len(self.templates), (len(labels),), generator=generator).tolist()
        names = [self.class_names[label] for label in labels.tolist()]
        return [self.templates[t].format(name) for t, name in zip(drawn, names, strict=True)]

    @torch.no_grad()
    def predict_proba(self, images: Tensor, names: Sequence[str] | None = None) -> Tensor:
        """(N, C) probabilities of the class names, or of any others: the tuned text tower is the head."""
        texts = encode_names(self.tuned, self.class_names if names is None else names, self.templates)
        return torch.softmax(self.tuned.logit_scale * image_features(self.tuned, images) @ texts.T, 1)

    def predict(self, images: Tensor, names: Sequence[str] | None = None) -> Tensor:
        """(N,) int64 index of the most probable name."""
        return self.predict_proba(images, names).argmax(1)


def contrastive_loss(images: Tensor, texts: Tensor, scale: float) -> Tensor:
    """Mean cross-entropy of each image among all texts and each text among all images (Radford et al. 2021).

    images, texts (B, D): row i of both belongs together; their length is free.
    """
    logits = scale * normalize(images, dim=-1) @ normalize(texts, dim=-1).T
    own = torch.arange(len(logits), device=logits.device)
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2
