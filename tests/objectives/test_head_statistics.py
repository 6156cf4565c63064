import pytest
import torch
from torch import nn

from unseen.errors import InputError
from unseen.objectives.head_autograd import head_statistics_by_autograd
from unseen.objectives.head_statistics import (
    STATISTICS,
    covariance_discrepancy,
    head_statistics,
)
from unseen.objectives.hutchinson import _signs, hutchinson_diagonal

B, F, C, D = 23, 5, 4, 3


@pytest.fixture
def problem(generator):
    torch.manual_seed(0)
    head = nn.Linear(F, C).double()
    features = torch.randn(B, F, generator=generator).double()
    labels = torch.randint(C, (B,), generator=generator)
    domain = torch.randint(D, (B,), generator=generator)
    weight = torch.rand(B, generator=generator).double() + 0.1
    return head, features, labels, domain, weight


def risk_of(head, features, labels, weight):
    losses = nn.functional.cross_entropy(head(features), labels, reduction="none")
    return (losses * weight).mean()


def shaped(head, gradients):
    """Gradients of weight (C, F) and bias (C,) as one (C, F + 1)."""
    return torch.cat([gradients[0], gradients[1].unsqueeze(1)], 1)


def as_parameters(values):
    """(..., C, F + 1) in the order in which a linear layer has its weight and then its bias."""
    return torch.cat([values[..., :-1].flatten(1), values[..., -1]], 1)


def slow_parameter_statistics(head, risk_per_example, risk):
    """gradient, gradient_variance, H g and diag H of one risk, by double backward, a coordinate at a time."""
    parameters = list(head.parameters())
    gradient = shaped(head, torch.autograd.grad(risk, parameters, create_graph=True))
    rows = [
        shaped(head, torch.autograd.grad(entry, parameters, retain_graph=True))
        for entry in gradient.flatten()
    ]
    hessian = torch.stack([row.flatten() for row in rows])
    each = torch.stack(
        [shaped(head, torch.autograd.grad(r, parameters, retain_graph=True)) for r in risk_per_example]
    )
    return {
        "gradient": gradient.detach(),
        "gradient_variance": each.var(0, unbiased=False),
        "hessian_gradient": (hessian @ gradient.detach().flatten()).view_as(gradient),
        "hessian_diagonal": hessian.diagonal().view_as(gradient),
        "hessian": hessian.view(*gradient.shape, *gradient.shape),
    }


@pytest.mark.parametrize("soft", [False, True])
def test_every_domain_equals_a_double_backward_on_that_domain_alone(problem, soft):
    head, features, labels, domain, weight = problem
    targets = torch.softmax(torch.randn(B, C).double(), 1) if soft else labels
    found = head_statistics(features, head(features), targets, domain, D, order=STATISTICS, weight=weight)
    for e in range(D):
        inside = domain == e
        losses = nn.functional.cross_entropy(head(features[inside]), targets[inside], reduction="none")
        losses = losses * weight[inside]
        for name, value in slow_parameter_statistics(head, losses, losses.mean()).items():
            torch.testing.assert_close(found.values[name][e], value)
        torch.testing.assert_close(found.values["loss"][e], losses.mean())
        scale = torch.ones((), dtype=torch.double, requires_grad=True)
        scaled = nn.functional.cross_entropy(
            scale * head(features[inside]), targets[inside], reduction="none"
        )
        expected = torch.autograd.grad((scaled * weight[inside]).mean(), scale)[0]
        torch.testing.assert_close(found.values["scale_gradient"][e], expected)


def test_pooled_statistics_are_those_of_the_mean_risk_not_the_mean_of_statistics(problem):
    head, features, labels, domain, weight = problem
    found = head_statistics(features, head(features), labels, domain, D, order=STATISTICS, weight=weight)
    counts = torch.bincount(domain, minlength=D)
    losses = nn.functional.cross_entropy(head(features), labels, reduction="none") * weight
    risk = torch.stack([losses[domain == e].mean() for e in range(D)]).mean()
    slow = slow_parameter_statistics(head, losses, risk)
    for name in ("gradient", "hessian_gradient", "hessian_diagonal", "hessian"):
        torch.testing.assert_close(found.pooled[name], slow[name])
    mean_of_products = found.values["hessian_gradient"].mean(0)
    assert (found.pooled["hessian_gradient"] - mean_of_products).abs().max() > 1e-3
    # variance of a gradient drawn by first drawing a domain
    share = 1 / (D * counts[domain].double())
    each = torch.stack(
        [shaped(head, torch.autograd.grad(r, list(head.parameters()), retain_graph=True)) for r in losses]
    )
    mean = (share.view(-1, 1, 1) * each).sum(0)
    torch.testing.assert_close(
        found.pooled["gradient_variance"], (share.view(-1, 1, 1) * (each - mean).square()).sum(0)
    )


def test_feature_moments_equal_those_of_each_domain(problem):
    head, features, labels, domain, _ = problem
    found = head_statistics(
        features, head(features), labels, domain, D, order=["feature_mean", "feature_covariance"]
    )
    for e in range(D):
        torch.testing.assert_close(found.values["feature_mean"][e], features[domain == e].mean(0))
        torch.testing.assert_close(found.values["feature_covariance"][e], features[domain == e].T.cov())


def test_repeating_examples_equals_weighting_them_in_feature_means(problem):
    head, features, labels, domain, _ = problem
    twice = (
        torch.cat([features, features[:7]]),
        torch.cat([labels, labels[:7]]),
        torch.cat([domain, domain[:7]]),
    )
    weight = torch.ones(B).double()
    weight[:7] = 2
    order = ["feature_mean"]
    repeated = head_statistics(twice[0], head(twice[0]), *twice[1:], D, order=order)
    weighted = head_statistics(features, head(features), labels, domain, D, order=order, weight=weight)
    torch.testing.assert_close(repeated.values, weighted.values)


@pytest.mark.parametrize("count", [1, 2, 9])
def test_covariance_discrepancy_by_gram_matrix_equals_that_of_the_matrices(problem, count):
    head, features, labels, domain, weight = problem
    domain = domain % count
    if count == 9:  # domains that the batch misses, and single examples
        domain = torch.arange(B) % 7
        domain[7:] = 0
    found = head_statistics(
        features, head(features), labels, domain, count, order=["feature_covariance"], weight=weight
    )
    covariances = found.values["feature_covariance"][found.rows.present > 0]
    expected = (covariances - covariances.mean(0)).square().sum((1, 2)).mean()
    torch.testing.assert_close(covariance_discrepancy(features, found.rows, weight), expected)


def test_a_missing_domain_is_zero_and_changes_nothing_else(problem):
    head, features, labels, domain, _ = problem
    alone = head_statistics(features, head(features), labels, domain, D, order=STATISTICS)
    wider = head_statistics(features, head(features), labels, domain + 1, D + 2, order=STATISTICS)
    assert wider.rows.present.tolist() == [0, 1, 1, 1, 0]
    for name in STATISTICS:
        torch.testing.assert_close(wider.values[name][1:-1], alone.values[name])
        torch.testing.assert_close(wider.pooled[name], alone.pooled[name])
        assert not wider.values[name][[0, -1]].any()


def test_order_of_examples_does_not_matter(problem, generator):
    head, features, labels, domain, weight = problem
    index = torch.randperm(B, generator=generator)
    first = head_statistics(features, head(features), labels, domain, D, order=STATISTICS, weight=weight)
    second = head_statistics(
        features[index], head(features[index]), labels[index], domain[index], D, order=STATISTICS,
        weight=weight[index],
    )  # fmt: skip
    torch.testing.assert_close(first.values, second.values)


def test_a_logistic_head_is_two_logits_of_which_one_is_zero(problem):
    _, features, labels, domain, _ = problem
    y = (labels > 1).double()
    w = torch.randn(F).double().requires_grad_()
    score = features @ w
    found = head_statistics(
        features, torch.stack([torch.zeros(B).double(), score], 1), y.long(), domain, D, order=STATISTICS
    )
    for e in range(D):
        inside = domain == e
        risk = nn.functional.binary_cross_entropy_with_logits(score[inside], y[inside])
        gradient = torch.autograd.grad(risk, w, create_graph=True)[0]
        diagonal = torch.stack(
            [torch.autograd.grad(g, w, retain_graph=True)[0][i] for i, g in enumerate(gradient)]
        )
        torch.testing.assert_close(found.values["gradient"][e, 1, :-1], gradient)
        torch.testing.assert_close(found.values["hessian_diagonal"][e, 1, :-1], diagonal)


def test_gradients_reach_features_and_head(problem):
    head, features, labels, domain, weight = problem
    features = features[:8].requires_grad_()

    def total(features, matrix, bias, name):
        found = head_statistics(
            features, features @ matrix.T + bias, labels[:8], domain[:8], D, order=[name], weight=weight[:8]
        )
        return found.values[name].square().sum() + found.pooled[name].square().sum()

    for name in STATISTICS:
        arguments = features, *(p.detach().requires_grad_() for p in head.parameters())
        assert torch.autograd.gradcheck(lambda *a, name=name: total(*a, name), arguments)


def test_autograd_fallback_equals_closed_forms_and_has_the_same_gradients(problem):
    head, features, labels, domain, weight = problem
    results = []
    for closed in (True, False):
        x = features.clone().requires_grad_()
        if closed:
            found = head_statistics(x, head(x), labels, domain, D, order=STATISTICS, weight=weight)
            values = {
                n: as_parameters(v) if v.dim() == 3 and "feature" not in n else v
                for n, v in found.values.items()
            }
            rows = as_parameters(found.values["hessian"].flatten(3).movedim(3, 1).flatten(0, 1))
            columns = rows.unflatten(0, (D, -1)).mT.flatten(0, 1).unflatten(-1, (C, F + 1))
            values["hessian"] = as_parameters(columns).unflatten(0, (D, -1))
        else:
            found = head_statistics_by_autograd(
                head, x, labels, domain, D, order=STATISTICS, weight=weight, chunk=7
            )
            values = found.values
        loss = (
            sum(v.square().sum() for v in values.values()) + found.pooled["hessian_gradient"].square().sum()
        )
        results.append((values, torch.autograd.grad(loss, [x, *head.parameters()])))
    torch.testing.assert_close(results[0], results[1])


def test_autograd_fallback_serves_a_nonlinear_head(problem):
    _, features, labels, domain, _ = problem
    head = nn.Sequential(nn.Linear(F, 6), nn.Tanh(), nn.Linear(6, C)).double()
    found = head_statistics_by_autograd(head, features, labels, domain, D, order=("loss", "hessian_gradient"))
    inside = domain == 1
    risk = nn.functional.cross_entropy(head(features[inside]), labels[inside])
    gradients = torch.autograd.grad(risk, list(head.parameters()), create_graph=True)
    flat = torch.cat([g.flatten() for g in gradients])
    product = torch.autograd.grad(flat @ flat.detach(), list(head.parameters()))
    torch.testing.assert_close(found.values["hessian_gradient"][1], torch.cat([p.flatten() for p in product]))


def test_half_precision_features_are_computed_in_single_precision(problem):
    head, features, labels, domain, _ = problem
    logits = head(features).bfloat16()
    found = head_statistics(features.bfloat16(), logits, labels, domain, D, order=["gradient_variance"])
    assert found.values["gradient_variance"].dtype == torch.float32


def test_one_hutchinson_probe_is_the_sign_weighted_row_sum_of_the_hessian(problem):
    head, features, labels, domain, _ = problem
    estimates, _ = hutchinson_diagonal(features, head(features), domain, D, probes=1, seed=3)
    inside = domain == 0
    risk = nn.functional.cross_entropy(head(features[inside]), labels[inside])
    gradient = shaped(head, torch.autograd.grad(risk, list(head.parameters()), create_graph=True)).flatten()
    hessian = torch.stack(
        [
            shaped(head, torch.autograd.grad(g, list(head.parameters()), retain_graph=True)).flatten()
            for g in gradient
        ]
    )
    z = _signs((1, C, F + 1), seed=3, index=0, like=features).flatten()
    assert set(z.tolist()) == {-1.0, 1.0}
    torch.testing.assert_close(estimates[0].flatten(), z * (hessian @ z))


def test_hutchinson_converges_to_the_exact_diagonal_and_shares_probes(problem):
    head, features, labels, domain, weight = problem
    exact = head_statistics(
        features, head(features), labels, domain, D, order=["hessian_diagonal"], weight=weight
    )
    few, many = (
        hutchinson_diagonal(features, head(features), domain, D, probes=n, weight=weight)[0]
        for n in (30, 3000)
    )
    errors = [(e - exact.values["hessian_diagonal"]).square().mean().sqrt() for e in (few, many)]
    assert errors[1] < errors[0] / 4 and errors[1] < 0.02
    same = torch.cat([features, features])
    both, _ = hutchinson_diagonal(same, head(same), torch.arange(2).repeat_interleave(B), 2, probes=5)
    torch.testing.assert_close(both[0], both[1], rtol=0, atol=1e-12)


def test_hutchinson_is_differentiable_whatever_the_number_of_chunks(problem):
    head, features, _, domain, weight = problem
    arguments = features[:6].requires_grad_(), *(p.detach().requires_grad_() for p in head.parameters())

    def estimate(features, matrix, bias):
        logits = features @ matrix.T + bias
        return hutchinson_diagonal(features, logits, domain[:6], D, probes=35, weight=weight[:6])[0]

    assert torch.autograd.gradcheck(estimate, arguments)


def test_hutchinson_keeps_no_tensor_that_grows_with_the_probes(problem):
    head, features, _, domain, _ = problem
    features = features.requires_grad_()

    def saved(probes):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            hutchinson_diagonal(features, head(features), domain, D, probes=probes)
        return sum(sizes)

    assert saved(1) == saved(200)


def test_errors_name_what_is_wrong(problem):
    head, features, labels, domain, _ = problem
    logits = head(features)
    with pytest.raises(InputError, match=r"statistic 'gradiant'.*'gradient'"):
        head_statistics(features, logits, labels, domain, D, order=["gradiant"])
    with pytest.raises(InputError, match=r"probes: is 0"):
        hutchinson_diagonal(features, logits, domain, D, probes=0)
    with pytest.raises(InputError, match=r"domain: has 22 rows"):
        head_statistics(features, logits, labels, domain[1:], D)
    with pytest.raises(InputError, match=r"features: have shape"):
        head_statistics(features[None], logits, labels, domain, D)
    with pytest.raises(InputError, match=r"has no parameters"):
        head_statistics_by_autograd(nn.Identity(), features, labels, domain, D)


class Hard(nn.Linear):
    def forward(self, x):
        return (super().forward(x) > 0).double()


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Once(nn.Linear):
    def forward(self, x):
        return OnceOnly.apply(super().forward(x))


@pytest.mark.parametrize(("kind", "said"), [(Hard, "not depend smoothly"), (Once, "differentiated twice")])
def test_heads_that_cannot_be_differentiated_twice_are_refused(problem, kind, said):
    _, features, labels, domain, _ = problem
    with pytest.raises(InputError, match=said):
        head_statistics_by_autograd(
            kind(F, C).double(), features, labels, domain, D, order=["hessian_gradient"]
        )
