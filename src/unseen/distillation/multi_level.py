"""Multi-level distillation: a student learns a teacher's outputs and, layer by layer, what lies nearest in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from unseen.distillation.distances import distance as distance_named
from unseen.distillation.layer_matching import choose_layers, nearest_layer
from unseen.distillation.logits import kept, logit_kl
from unseen.distillation.named_outputs import layer_names, logits_of, named_outputs
from unseen.errors import InputError, nearest
from unseen.networks.modes import evaluating
from unseen.sequences.perplexity import next_token_losses

Projection = Literal["teacher", "student", "both", "none"]


class Outputs(NamedTuple):
    """logits  (..., C)
    hidden  of every layer (..., F), the positions of the logits or others
    """

    logits: Tensor
    hidden: tuple[Tensor, ...]


class MultiLevelDistillation(nn.Module):
    """Loss of a student taught at its outputs and at intermediate layers (MLKD, Wu et al. 2023, arXiv 2211.11300).

        distillation = MultiLevelDistillation(teacher, student)
        total, parts = distillation(ids, mask)

    The loss is KL(teacher || student) of logits softened by `temperature`, plus for each student layer and token
    the distances to the `top_k` teacher layers that are most similar, summed over layers and averaged over tokens,
    plus `lm_weight` times the cross-entropy of the next token.

    teacher, student  modules that map inputs to logits; neither belongs to this module, whose own parameters (the
                      projection) are trained with the student's. The teacher runs in evaluation mode, without
                      gradient
    student_layers    "middle", "last", "all", or numbers from 1
    top_k             K, nearest teacher layers for each token and student layer
    temperature       of the logits; the KL isn't multiplied by its square
    lm_weight         above 0 only for language models, which read ids (B, T)
    projection        side with a linear layer between the widths, shared by all layers: "teacher" (the paper's),
                      "student", "both" (to the student's width), or "none" for equal widths
    distance          "mse" (the paper's), "kl" (of softmaxed states) or "cosine"
    normalise         whether hidden states are standardised before they are compared: with a trained projection,
                      states near zero on both sides would lower the loss, too. Parts report their size
    teacher_names, student_names
                      modules whose outputs are the layers (see `named_outputs`); None: see `layer_names`
    example           an input of both, to learn widths from: as it is read in training, a batch of one will do;
                      None: two tokens
    seed              of the projection

    Raises `InputError` for logits of different size (vocabularies), K above the number of teacher layers, layers
    that there aren't, no hidden states, different widths without a projection, and a mask without any token.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        *,
        student_layers: str | Sequence[int] = "middle",
        top_k: int = 2,
        temperature: float = 1.0,
        lm_weight: float = 0.0,
        projection: Projection = "teacher",
        distance: str = "mse",
        normalise: bool = False,
        teacher_names: str | Sequence[str] | None = None,
        student_names: str | Sequence[str] | None = None,
        example: Any = None,
        seed: int = 0,
    ):
        super().__init__()
        distance_named(distance)
        if not temperature > 0:
            raise InputError("temperature", f"is {temperature}", "Give a positive number, such as 1.")
        if not lm_weight >= 0:
            raise InputError("lm_weight", f"is {lm_weight}", "Give a number from 0.")
        self._models = (teacher, student)  # a tuple: they are no part of this module's parameters and state
        self._names = (teacher_names or layer_names(teacher), student_names or layer_names(student))
        self.top_k, self.temperature, self.lm_weight = top_k, temperature, lm_weight
        self.distance, self.normalise = distance, normalise
        if example is None:
            example = torch.zeros(1, 2, dtype=torch.int64, device=next(student.parameters()).device)
        own, other = _evaluated(student, self._names[1], example), self.taught(example)
        if own.logits.shape[-1] != other.logits.shape[-1]:
            problem = (
                f"are {own.logits.shape[-1]} for the student and {other.logits.shape[-1]} for the teacher"
            )
            raise InputError(
                "classes or tokens", problem, "Both need one vocabulary: give them one tokenizer."
            )
        if not 1 <= top_k <= len(other.hidden):
            problem = f"is {top_k} with {len(other.hidden)} teacher layer(s)"
            raise InputError("top_k", problem, "Choose from 1 to the number of teacher layers.")
        self.layers = choose_layers(student_layers, len(own.hidden))
        self.project_teacher, self.project_student = _projections(
            projection, _width(other.hidden, "teacher"), _width(own.hidden, "student"), seed
        )
        self.to(own.logits.device)

    def forward(
        self, x: Any, mask: Tensor | None = None, taught: Outputs | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the student on inputs x as both models read them, and its parts by name.

        mask    (B, T), nonzero for real tokens; padding at the right, which a causal model doesn't see
        taught  what `taught(x)` gave before, where the teacher's outputs are kept: it doesn't run then
        """
        own = _outputs(self._models[1], self._names[1], x)
        total, parts = self.loss(own, self.taught(x) if taught is None else taught, mask)
        if self.lm_weight > 0:
            parts["next token"] = next_token_losses(own.logits, x, mask).mean()
            total = total + self.lm_weight * parts["next token"]
        return total, parts

    def taught(self, x: Any) -> Outputs:
        """The teacher's outputs for inputs x, in evaluation mode; it is left in the mode that it was in."""
        return _evaluated(self._models[0], self._names[0], x)

    def loss(
        self, student: Outputs, teacher: Outputs, mask: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss from outputs alone, without the next token's; parts "prediction", "layers" and, without
        gradient, the root mean squares "student size" and "teacher size" of the states that were compared."""
        if not student.hidden or not teacher.hidden:
            raise InputError("hidden states", "are none", "Give the outputs of one layer at least.")
        parts = {"prediction": logit_kl(student.logits, teacher.logits, self.temperature, mask)}
        own = torch.stack([kept(student.hidden[layer - 1], mask) for layer in self.layers], -2)
        other = torch.stack([kept(hidden.detach(), mask) for hidden in teacher.hidden], -2)
        own, other = self.project_student(own), self.project_teacher(other)
        for name, states in (("student size", own), ("teacher size", other)):
            parts[name] = states.detach().square().mean().sqrt()
        if self.normalise:
            own, other = (layer_norm(states, states.shape[-1:], eps=1e-8) for states in (own, other))
        near = nearest_layer(own, other, self.top_k, self.distance)
        parts["layers"] = near.distance.sum((-2, -1)).mean()
        return parts["prediction"] + parts["layers"], parts


def _outputs(network: nn.Module, names: str | Sequence[str], x: Any) -> Outputs:
    with named_outputs(network, names) as hidden:
        logits = logits_of(network(x))
    return Outputs(logits, tuple(hidden.values()))


@torch.no_grad()
def _evaluated(network: nn.Module, names: str | Sequence[str], x: Any) -> Outputs:
    with evaluating(network):
        return _outputs(network, names, x)


def _width(hidden: tuple[Tensor, ...], whose: str) -> int:
    widths = {states.shape[-1] for states in hidden}
    if len(widths) != 1:
        problem = f"have widths {sorted(widths)}"
        raise InputError(f"the {whose}'s layers", problem, "Name layers of one width.")
    return widths.pop()


def _projections(projection: str, teacher: int, student: int, seed: int) -> tuple[nn.Module, nn.Module]:
    """Modules for the teacher's and the student's states, which give them one width."""
    sides = {
        "teacher": ((teacher, student), None),
        "student": (None, (student, teacher)),
        "both": ((teacher, student), (student, student)),
        "none": (None, None),
    }
    if projection not in sides:
        raise InputError(f"projection {projection!r}", "is not known", nearest(projection, sides))
    if projection == "none" and teacher != student:
        problem = f"is {student} and the teacher's {teacher}"
        raise InputError("the student's width", problem, 'Choose a projection, such as "teacher".')
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = [nn.Identity() if side is None else nn.Linear(*side) for side in sides[projection]]
    return built[0], built[1]
