"""The measured answers of docs/questions.md, in one to two minutes:

    python examples/questions.py

One table needs a linear Gaussian model, whose ln p(x) is known exactly. The others are of small VAEs: 16x16 colour
images made from minivae's own house numbers, 10 latents, 600 steps of batch 50, one seed.
"""

import numpy as np
from pages import table, write_between

from minivae.adam import Adam
from minivae.images import housenumbers
from minivae.ops import numpy_ops, plain
from minivae.parameters import Parameters
from minivae.vae import VAE, Widths

SHAPE = 16, 16, 3
SIZE = 768
LATENT = 10
BATCH = 50
WIDTHS = Widths((16, 32, 64), 128, (64, 32, 16))
NOISE = 0.3  # of the linear model's p(x|z)
SETTINGS = {"sigma = 1": {}, "sigma = 1, beta1 = 0.9": {"beta1": 0.9}, "sigma = 0.3": {"sigma": 0.3},
            "sigma optimal": {"sigma": "optimal"}, "mean over pixels": {"sigma": (SIZE / 2) ** 0.5}}


def images(split, count):
    levels, _ = housenumbers.make(split, count=count)
    small = levels.reshape(count, 16, 2, 16, 2, 3).mean((2, 4), dtype=np.float32)
    return small / np.float32(127.5) - 1


def ln_normal(error, var):
    """ln N(error; 0, var), summed over the last axis."""
    return -(error**2 / var + np.log(2 * np.pi * var)).sum(-1) / 2


def log_mean(ln_w):
    """ln of the mean of exp(ln_w) over the first axis."""
    largest = ln_w.max(0)
    return largest + np.log(np.exp(ln_w - largest).mean(0))


def linear_ln_p(x, w):
    """Exact: x = z w + NOISE eps is normal with covariance w^T w + NOISE^2."""
    covariance = w.T @ w + NOISE**2 * np.eye(w.shape[1])
    whitened = np.linalg.solve(np.linalg.cholesky(covariance), x.T).T
    return ln_normal(whitened, 1).mean() - np.linalg.slogdet(covariance)[1] / 2


def linear(x, draws):
    """w trained on ln (1/K) sum p(x|z_k), z_k from the prior and K = draws, or on the ELBO with one z from p(z|x)."""
    rng = np.random.default_rng(0)
    params = Parameters(plain, np.float64)
    w = params.weight("w", (LATENT, x.shape[1]), LATENT)
    params.allocate()
    adam = Adam(params, lr=0.01)
    for _ in range(1000):
        batch = x[rng.choice(len(x), 32)]
        z = rng.standard_normal((draws or 1, 32, LATENT))
        if not draws:
            precision = w.value @ w.value.T / NOISE**2 + np.eye(LATENT)  # of p(z|x), which is normal
            z = z @ np.linalg.inv(np.linalg.cholesky(precision))
            z += batch @ w.value.T @ np.linalg.inv(precision) / NOISE**2
        error = z @ w.value - batch
        ln_p = ln_normal(error, NOISE**2)
        error *= np.exp(ln_p - log_mean(ln_p))[..., None] / len(z)  # the share of each draw in the mean
        w.grad[...] = np.tensordot(z, error, ((0, 1), (0, 1))) / NOISE**2 / 32
        adam.update()
        adam.t += 1
    return w.value


def monte_carlo():
    rng = np.random.default_rng(1)
    true = rng.standard_normal((LATENT, 32))
    x = rng.standard_normal((2100, LATENT)) @ true
    x += NOISE * rng.standard_normal(x.shape)
    test = x[2000:2100]
    rows = []
    for k in (1, 10, 100, 1000, 10_000):
        estimate = log_mean(ln_normal(rng.standard_normal((k, len(test), LATENT)) @ true - test, NOISE**2)).mean()
        trained = f"{linear_ln_p(test, linear(x[:2000], k)):.0f}" if k <= 100 else ""
        rows.append([f"{k:,}", f"{estimate:.0f}", trained])
    rows.append(["exact", f"{linear_ln_p(test, true):.0f}", ""])
    rows.append(["ELBO, 1 draw from p(z\\|x)", "", f"{linear_ln_p(test, linear(x[:2000], 0)):.0f}"])
    return table(["draws from the prior", "ln of their mean", "exact ln p(x) after training on it"], rows)


def train(images, test, beta1=0.5, **settings):
    """The trained model, and its losses on the way: rows of a table."""
    vae = VAE(SHAPE, LATENT, numpy_ops, widths=WIDTHS, **settings)
    adam = Adam(vae.params, beta1=beta1)
    rng = np.random.default_rng(0)
    rows = []
    for step in range(601):
        if step in (0, 10, 30, 100, 300, 600):
            rec, kl = losses(vae, test, train=True)
            rows.append([str(step), f"{rec:.0f}", f"{kl:.1f}", f"{rec + kl:.0f}", f"{sum(losses(vae, test)):.0f}"])
        vae.forward(images[rng.choice(len(images), BATCH)], normal(rng, BATCH))
        vae.backward()
        adam.update()
        adam.t += 1
    return vae, rows


def normal(rng, count):
    return rng.standard_normal((count, LATENT), np.float32)


def losses(vae, x, train=False):
    """Mean rec and kl of the images x; the moving statistics stay as they were."""
    kept = vae.params.moving_statistics.copy()
    rec, kl = vae.forward(x, normal(np.random.default_rng(2), len(x)), train)
    vae.params.moving_statistics[...] = kept
    return rec.mean(), kl.mean()


def encoder_gradient(vae, x, eps):
    vae.forward(x, eps)
    vae.backward()
    return np.concatenate([p.grad.ravel() for p in vae.params.trained if p.name.startswith("enc/")])


def others(unit, narrow, test):
    """What is asked of the models with sigma = 1 and sigma = 0.3, as rows: a quantity and its value."""
    x_hat = unit.decode(unit.encode(test))
    rng = np.random.default_rng(3)
    noise = rng.standard_normal(test.shape, np.float32)
    rmse = float(((x_hat - test) ** 2).mean() ** 0.5)
    rows = [("loss of test images, sigma = 1", f"{sum(losses(unit, test)):.1f}"),
            ("loss of their reconstructions", f"{sum(losses(unit, x_hat)):.1f}")]
    for name, picture in (("test images", test), ("reconstructions", x_hat), ("draws from N(x_hat, 1)", x_hat + noise),
                          (f"draws from N(x_hat, {rmse:.2f}^2), the best sigma", x_hat + rmse * noise)):
        levels = 127.5 * np.abs(np.diff(picture, axis=2)).mean()
        rows.append((f"difference of neighbouring pixels, grey levels: {name}", f"{levels:.0f}"))
    x = test[:BATCH]
    ln_w = []
    for _ in range(100):
        rec, kl = narrow.forward(x, normal(rng, BATCH), train=False)
        ln_w.append(-rec - kl - SIZE / 2 * np.log(2 * np.pi))
    rows += [("ELBO, mean of ln w, sigma = 0.3", f"{np.mean(ln_w):.1f}"),
             ("ln of the mean of 100 w", f"{log_mean(np.array(ln_w, np.float64)).mean():.1f}")]
    for narrow.posterior.analytic in (False, True):
        g = np.array([encoder_gradient(narrow, x, normal(rng, BATCH)) for _ in range(50)])
        spread = (g.var(0).sum() / (g.mean(0) ** 2).sum()) ** 0.5
        name = "analytic KL" if narrow.posterior.analytic else "one sample"
        rows.append((f"encoder's gradient, noise over size, sigma = 0.3: {name}", f"{spread:.2f}"))
    eps = normal(rng, BATCH)
    gradients = []
    for sigma in (1, 2, 0.3):
        unit.likelihood.log_sigma.value[0] = np.log(sigma)
        gradients.append(encoder_gradient(unit, x, eps))
    kl = (4 * gradients[1] - gradients[0]) / 3
    beta = (gradients[0] - kl + 0.09 * kl) / 0.09
    error = np.linalg.norm(beta - gradients[2]) / np.linalg.norm(beta)
    rows.append(("gradient with sigma = 0.3 against (rec + 0.09 kl)/0.09 with sigma = 1, relative", f"{error:.0e}"))
    return table(["", "measured"], rows)


def main():
    training, test = images("train", 2000), images("test", 500)
    rows = []
    models = {}
    for name, settings in SETTINGS.items():
        models[name], curve = train(training, test, **settings)
        if name == "sigma = 0.3":
            write_between("questions.md", "curve", table(["steps", "rec", "KL", "loss", "loss in test mode"], curve))
        vae = models[name]
        rec, kl = losses(vae, test)
        error = ((vae.decode(vae.encode(test)) - test) ** 2).mean()
        sigma = float(vae.likelihood.var(None)[0] ** 0.5)
        rows.append([name, f"{sigma:.2f}", f"{rec:.0f}", f"{kl:.1f}", f"{rec + kl:.1f}", f"{error:.3f}"])
    header = ["", "sigma", "rec", "KL", "loss", "mean squared error"]
    write_between("questions.md", "settings", table(header, rows))
    write_between("questions.md", "others", others(models["sigma = 1"], models["sigma = 0.3"], test))
    write_between("questions.md", "monte carlo", monte_carlo())


if __name__ == "__main__":
    main()
