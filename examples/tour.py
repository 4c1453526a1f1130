"""A tour: a tiny VAE on the definition's operations, a forward, a backward, and one gradient by hand.

    python examples/tour.py
"""

import numpy as np

from minivae.gradcheck import difference
from minivae.ops import plain
from minivae.vae import VAE, Widths

rng = np.random.default_rng(0)
vae = VAE((8, 8, 1), latent=2, ops=plain, dtype=np.float64, widths=Widths((2, 3, 4), 6, (5, 4, 3)))
x = rng.uniform(-1, 1, (3, 8, 8, 1))  # three grey images
eps = rng.standard_normal((3, 2))  # the noise of z = mean + sqrt(var) eps

rec, kl = vae.forward(x, eps)
print("loss in nats per image: rec", rec.round(3), "+ kl", kl.round(3), "\n")

vae.backward()
print(f"{vae.params.values.size} numbers in the parameters' buffer, and as many in that of their gradients:")
for p in vae.params.trained:
    print(f"  {p.name:<17}{p.shape!s:<15} |dL/dp| = {np.linalg.norm(p.grad):.4f}")

# The bias b of the last layer by hand. x_hat = tanh(a + b) and L = mean ||x - x_hat||^2 / 2 + ..., so by the chain rule
# dL/db is the sum of (x_hat - x)(1 - x_hat^2) / N over images and pixels.
x_hat = vae.likelihood.x_hat
by_hand = ((x_hat - x) * (1 - x_hat**2)).sum() / len(x)
b = vae.likelihood.b
print(f"\ndL/db by hand {by_hand:.10f}, by backward {b.grad[0]:.10f}")


def loss():
    rec, kl = vae.forward(x, eps)
    return float((rec + kl).mean())


print(f"by finite differences {difference(loss, b.value, np.ones(1)):.10f}")
