"""Machine Vision Therapy with CLIP and a language model that sees, on an image folder whose domains are targets."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from unseen.distillation.teachers import Teacher
from unseen.distillation.text_classifier import Embedder, text_classifier
from unseen.errors import InputError
from unseen.networks.dual_encoder import DualEncoder
from unseen.networks.feature_cache import content_hash
from unseen.networks.zero_shot import TEMPLATES
from unseen.papers.left_out_domains import image_folder
from unseen.papers.vl2v_full import named_teacher, raw_images
from unseen.relabelling.labeler import DenoisingInContextLabeler, Support
from unseen.relabelling.multimodal import EndpointVerifier
from unseen.relabelling.questions import Verifier
from unseen.relabelling.therapy import therapy_finetune, therapy_report
from unseen.relabelling.transition import estimate_transition
from unseen.shifts.opening import open_shift
from unseen.shifts.shift import Shift
from unseen.training.data import TrainingData


class ImageTower(nn.Module):
    """A dual encoder's `encode_image` as a module, so that its weights can be tuned."""

    def __init__(self, encoder: DualEncoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder.encode_image(images)


def therapy(
    seed: int,
    shift: Shift | None = None,
    encoder: DualEncoder | None = None,
    verifier: Verifier | None = None,
    *,
    per_class: int = 10,
    images: int = 5000,
    lr: float = 5e-7,
) -> dict[tuple[str, str], float]:
    """(condition, metric) -> mean over target domains, of CLIP, its labels after DICL, and CLIP after therapy.

    shift      default `image_folder`
    encoder    default the dual encoder that $UNSEEN_TEACHER names
    verifier   default the model $UNSEEN_JUDGE behind the address $UNSEEN_JUDGE_URL
    per_class  labelled exemplars of the target domain; half of up to `images` others is used, half judges
    """
    shift = open_shift(image_folder()) if shift is None else shift
    encoder = named_teacher() if encoder is None else encoder
    verifier = named_judge() if verifier is None else verifier
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if isinstance(encoder, nn.Module):
        encoder.to(device)
    texts = Teacher(encoder).texts(shift.classes, TEMPLATES).to(device)
    model = text_classifier(Embedder(ImageTower(encoder)), texts, encoder.logit_scale).to(device).eval()
    data = TrainingData(shift.split(unseen=None, seed=seed))
    pixels = raw_images(data)
    found: dict[tuple[str, str], list[float]] = {}
    for domain in range(len(shift.domains)):
        generator = torch.Generator().manual_seed(seed)
        rows = (shift.domain == domain).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=generator)]
        labels = shift.labels[rows]
        shown = torch.cat([rows[labels == c][:per_class] for c in range(len(shift.classes))])
        others = rows[~torch.isin(rows, shown)][:images]

        def read(rows: Tensor) -> tuple[Tensor, Tensor]:
            parts = [data.batch(part, 0) for part in rows.split(256)]
            x = torch.cat([pixels(part.x) for part in parts])
            return x.to(device), torch.cat([part.y for part in parts]).to(device)

        support = Support(*read(shown), shift.classes)
        used, held_out = (
            unlike(support, read(part)) for part in (others[: len(others) // 2], others[len(others) // 2 :])
        )
        with torch.no_grad():
            probs = torch.cat([model(part).softmax(1) for part in support.images.split(64)])
        transition = estimate_transition(probs, support.labels, per_class)
        result = DenoisingInContextLabeler(
            model, verifier, support, transition, seed=seed, batch_size=64
        ).relabel(used[0])
        tuned = therapy_finetune(model, used[0], result, lr=lr, seed=seed)
        report = result.report(used[1])
        for condition, label_accuracy, network in (
            ("vision model", report["before"], model), ("dicl", report["after"], tuned),
        ):  # fmt: skip
            found.setdefault((condition, "labels"), []).append(label_accuracy)
            for metric, value in therapy_report(network, used, held_out, 64).items():
                found.setdefault((condition, metric), []).append(value)
    return {key: sum(values) / len(values) for key, values in found.items()}


def unlike(support: Support, examples: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The examples without copies of exemplars: folders of photographs hold some pictures twice."""
    shown = {content_hash(image) for image in support.images}
    kept = torch.tensor(
        [content_hash(image) not in shown for image in examples[0]], device=examples[1].device
    )
    return examples[0][kept], examples[1][kept]


def named_judge() -> EndpointVerifier:
    """The model $UNSEEN_JUDGE behind the OpenAI-compatible address $UNSEEN_JUDGE_URL."""
    url, model = os.environ.get("UNSEEN_JUDGE_URL"), os.environ.get("UNSEEN_JUDGE")
    if not url or not model:
        raise InputError(
            "UNSEEN_JUDGE_URL, UNSEEN_JUDGE",
            "are not set",
            "Give the address and name of a model that sees, such as http://localhost:8000/v1.",
        )
    return EndpointVerifier(url, model)
