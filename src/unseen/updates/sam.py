"""SAM, ASAM and Fisher SAM: step along the gradient taken at the worst parameters nearby."""

from __future__ import annotations

from unseen.registry import updates
from unseen.updates.perturbed import PerturbedStep


@updates.register(
    "sam",
    summary="Gradient at the worst parameters within a ball of radius rho",
    paper="Foret et al. 2021, arXiv 2010.01412",
    search={"rho": ("log", 1e-2, 2e-1)},
)
@updates.register(
    "asam",
    summary="SAM with a ball that scales with each parameter",
    paper="Kwon et al. 2021, arXiv 2102.11600",
    preset={"rho": 0.5, "metric": "adaptive"},
    search={"rho": ("log", 1e-1, 2.0)},
)
@updates.register(
    "fsam",
    summary="SAM with a ball of the Fisher metric: flat directions are searched further",
    paper="Kim et al. 2022, arXiv 2206.04920",
    preset={"rho": 0.1, "metric": "fisher", "eta": 1.0},
    search={"rho": ("log", 1e-2, 5e-1), "eta": ("log", 1e-2, 1e1)},
)
class SAM(PerturbedStep):
    """Follow the gradient at the perturbed parameters; see `PerturbedStep` for the metrics."""

    def __init__(self, rho: float = 0.05, metric: str = "euclidean", eta: float = 0.01):
        super().__init__(rho, metric, eta)
