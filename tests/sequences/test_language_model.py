import torch

from unseen.sequences.extend_context import extend_context
from unseen.sequences.language_model import DecoderLM


def tiny(positions="rope", **options):
    model = DecoderLM(32, width=32, layers=2, heads=4, window=8, positions=positions, seed=1, **options)
    with torch.no_grad():  # sharper attention than at initialisation, so that policies differ visibly
        for block in model.blocks:
            block.attention.query.weight.mul_(12)
            block.attention.key.weight.mul_(12)
    return model.eval()


def tokens(generator, batch=2, length=30):
    return torch.randint(32, (batch, length), generator=generator)


def test_generate_is_greedy_or_seeded(generator):
    model, prompt = tiny(), tokens(generator, length=5)
    with extend_context(model, n_global=2):
        out = model.generate(prompt, 20)
        expected = prompt
        for _ in range(20):
            expected = torch.cat([expected, model(expected)[:, -1:].argmax(-1)], 1)
        sampled = [
            model.generate(prompt, 20, temperature=1.0, generator=torch.Generator().manual_seed(seed))
            for seed in (0, 0, 1)
        ]
    assert torch.equal(out, expected)
    assert torch.equal(sampled[0], sampled[1]) and not torch.equal(sampled[0], sampled[2])


def test_loss_is_the_mean_negative_log_likelihood(generator):
    model, x = tiny(), tokens(generator, length=8)
    log_probabilities = model(x)[:, :-1].log_softmax(-1)
    expected = -log_probabilities.gather(-1, x[:, 1:, None]).mean()
    torch.testing.assert_close(model.loss(x), expected)
    model.loss(x).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_same_seed_same_weights_and_size():
    a, b, c = (DecoderLM(seed=seed) for seed in (0, 0, 1))
    assert torch.equal(a.head.weight, b.head.weight) and not torch.equal(a.head.weight, c.head.weight)
    assert sum(p.numel() for p in a.parameters()) == 182_080
