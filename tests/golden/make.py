"""Makes the arrays beside it with TensorFlow's own operations, in float64.

    pip install tensorflow && python tests/golden/make.py

ops.npz has convolutions and transposed convolutions with their gradients, odd sizes among them; step_small.npz has
three training steps of a small model of the reference's form. A bias is kept only where no batch norm follows.
"""

from pathlib import Path

import numpy as np
import tensorflow as tf

HERE = Path(__file__).parent
CONVOLUTIONS = [  # height, width, inputs, outputs, kernel, stride
    (32, 32, 3, 5, 3, 2), (16, 16, 4, 6, 3, 2), (8, 8, 3, 7, 5, 2), (7, 9, 2, 3, 3, 2), (6, 5, 3, 4, 5, 1),
    (14, 14, 1, 2, 4, 2)]
LATENT = 4
CHANNELS = 4, 8, 16
HIDDEN = 32
GENERATOR = 24, 12, 8, 3
BATCH = 6
STEPS = 3


def differentiated(rng, f, x, w):
    """x, w, y = f(x, w), a random dy, and dx, dw of sum y dy."""
    x_and_w = [tf.constant(x), tf.constant(w)]
    with tf.GradientTape() as tape:
        tape.watch(x_and_w)
        y = f(*x_and_w)
        dy = rng.randn(*y.shape)
        product = tf.reduce_sum(y * dy)
    dx, dw = tape.gradient(product, x_and_w)
    return {"x": x, "w": w, "y": y, "dy": dy, "dx": dx, "dw": dw}


def convolutions():
    rng = np.random.RandomState(3)
    arrays = {}
    for i, (height, width, inputs, outputs, kernel, stride) in enumerate(CONVOLUTIONS):
        x = rng.randn(2, height, width, inputs)
        w = rng.randn(kernel, kernel, inputs, outputs)

        def conv(x, w, stride=stride):
            return tf.nn.conv2d(x, w, stride, "SAME")

        def transposed(z, w, stride=stride, size=(2, height * stride, width * stride, inputs)):
            return tf.nn.conv2d_transpose(z, w, size, stride, "SAME")

        for name, values in ((f"conv{i}", differentiated(rng, conv, x, w)),
                             (f"tconv{i}", differentiated(rng, transposed, rng.randn(2, height, width, outputs), w))):
            arrays |= {f"{name}_{key}": np.asarray(value) for key, value in values.items()}
            arrays[f"{name}_stride"] = stride
    return arrays


def parameters():
    """{name: array}: weights by the reference's rule, and gamma, beta and bias where their gradients are not dull."""
    rng = np.random.RandomState(7)
    made = {}

    def weight(name, shape, fan):
        made[f"{name}/w"] = np.clip(rng.randn(*shape), -2, 2) * np.sqrt(2.6 / fan)

    def batch_norm(name, channels):
        made[f"{name}/gamma"] = 1 + 0.1 * rng.randn(channels)
        made[f"{name}/beta"] = 0.1 * rng.randn(channels)

    inputs = 3
    for i, channels in enumerate(CHANNELS, 1):
        weight(f"enc/conv{i}", (3, 3, inputs, channels), 9 * inputs)
        batch_norm(f"enc/conv{i}", channels)
        inputs = channels
    weight("enc/dense", (16 * inputs, HIDDEN), 16 * inputs)
    batch_norm("enc/dense", HIDDEN)
    for head in ("mean", "var"):
        weight(f"enc/{head}", (HIDDEN, LATENT), HIDDEN)
        batch_norm(f"enc/{head}", LATENT)
    inputs, *layers = GENERATOR
    weight("gen/dense", (LATENT, 16 * inputs), LATENT)
    batch_norm("gen/dense", 16 * inputs)
    for i, channels in enumerate(layers, 1):
        weight(f"gen/tconv{i}", (5, 5, channels, inputs), 25 * channels)
        if i < len(layers):
            batch_norm(f"gen/tconv{i}", channels)
        inputs = channels
    made["gen/tconv3/b"] = 0.1 * rng.randn(inputs)
    return made


class Model:
    def __init__(self, values):
        self.variables = {name: tf.Variable(value) for name, value in values.items()}
        self.moving = {}

    def batch_norm(self, x, name):
        mean, var = tf.nn.moments(x, list(range(len(x.shape) - 1)))
        for key, moment, initial in (("moving_mean", mean, 0.0), ("moving_var", var, 1.0)):
            old = self.moving.get(f"{name}/{key}", initial)
            self.moving[f"{name}/{key}"] = np.asarray(old + (1 - 0.99) * (moment - old))
        n = (x - mean) * tf.math.rsqrt(var + 1e-3)
        return n * self.variables[f"{name}/gamma"] + self.variables[f"{name}/beta"]

    def block(self, y, name):
        u = self.batch_norm(y, name)
        return tf.maximum(u, 0.2 * u)

    def dense(self, x, name):
        return x @ self.variables[f"{name}/w"]

    def forward(self, x, eps):
        h = x
        for i in (1, 2, 3):
            h = self.block(tf.nn.conv2d(h, self.variables[f"enc/conv{i}/w"], 2, "SAME"), f"enc/conv{i}")
        h = self.block(self.dense(tf.reshape(h, [len(x), -1]), "enc/dense"), "enc/dense")
        mean = self.batch_norm(self.dense(h, "enc/mean"), "enc/mean")
        var = tf.nn.softplus(self.batch_norm(self.dense(h, "enc/var"), "enc/var")) + 1e-5
        z = mean + tf.sqrt(var) * eps
        g = tf.reshape(self.block(self.dense(z, "gen/dense"), "gen/dense"), [len(x), 4, 4, -1])
        for i in (1, 2, 3):
            w = self.variables[f"gen/tconv{i}/w"]
            size = 2 * g.shape[1]
            g = tf.nn.conv2d_transpose(g, w, [len(x), size, size, w.shape[2]], 2, "SAME")
            g = self.block(g, f"gen/tconv{i}") if i < 3 else tf.tanh(g + self.variables["gen/tconv3/b"])
        return {"mean": mean, "var": var, "z": z, "x_hat": g}


def log_normal(z, mean, var):
    return -0.5 * tf.reduce_sum(np.log(2 * np.pi) + tf.math.log(var) + (z - mean) ** 2 / var, -1)


def steps():
    rng = np.random.RandomState(5)
    start = parameters()
    x = np.array([rng.rand(BATCH, 32, 32, 3) * 2 - 1 for _ in range(STEPS)])
    eps = np.array([rng.randn(BATCH, LATENT) for _ in range(STEPS)])
    model = Model(start)
    adam = tf.compat.v1.train.AdamOptimizer(1e-3, 0.5)
    variables = list(model.variables.values())
    losses = []
    arrays = {"x": x, "eps": eps} | {f"param/{name}": value for name, value in start.items()}
    for step in range(STEPS):
        with tf.GradientTape() as tape:
            found = model.forward(x[step], eps[step])
            z = found["z"]
            rec = tf.reduce_mean(0.5 * tf.reduce_sum((x[step] - found["x_hat"]) ** 2, [1, 2, 3]))
            kl = tf.reduce_mean(log_normal(z, found["mean"], found["var"])
                                - log_normal(z, tf.zeros_like(z), tf.ones_like(z)))
            loss = rec + kl
        gradients = tape.gradient(loss, variables)
        losses.append([float(rec), float(kl), float(loss)])
        if step == 0:
            found |= {f"grad/{name}": g for name, g in zip(model.variables, gradients, strict=True)}
            found |= {f"after1/{name}": value for name, value in model.moving.items()}
            arrays |= {f"first/{name}": np.asarray(value) for name, value in found.items()}
        adam.apply_gradients(zip(gradients, variables, strict=True))
    after = {name: variable.numpy() for name, variable in model.variables.items()} | model.moving
    return arrays | {"losses": np.array(losses)} | {f"after3/{name}": value for name, value in after.items()}


if __name__ == "__main__":
    np.savez_compressed(HERE / "ops.npz", **convolutions())
    np.savez_compressed(HERE / "step_small.npz", **steps())
