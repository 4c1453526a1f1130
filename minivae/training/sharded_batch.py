"""The operations on a rank's shard of a batch, where they find what belongs to the whole batch.

That is batch norm's moments and the two sums of its backward, a fitted sigma, and the 1 / N of the loss, a mean over
the whole batch. A parameter's gradient stays that of the shard: the training step adds up all of them at once.
"""


class ShardedBatch:
    """`ops` for a rank that has its shard of `count` images. Test mode is that of `ops`."""

    def __init__(self, ops, ranks, count):
        self.ops = ops
        self.ranks = ranks
        self.count = count
        shard = ranks.shard(count)
        self.images = shard.stop - shard.start
        self.buffers = ops.Buffers()

    def __getattr__(self, name):
        return getattr(self.ops, name)

    def beside(self, first, second):
        """One after the other: all ranks must do what they do together in the same order."""
        return first(), second()

    def batch_moments(self, x, moments):
        self.ops.batch_moments(x, moments)
        self.merge(moments)

    def dense(self, x, w, y, moments=None):
        self.ops.dense(x, w, y, moments)
        self.merge(moments)

    def conv(self, cols, w, g, y, moments=None):
        self.ops.conv(cols, w, g, y, moments)
        self.merge(moments)

    def conv_dx(self, dy, w, g, dx, moments=None):
        self.ops.conv_dx(dy, w, g, dx, moments)
        self.merge(moments)

    def merge(self, moments):
        """From the mean m_r and the variance v_r of every shard, a fraction f_r of the batch, in place

            mean = sum f_r m_r      var = sum f_r (v_r + (m_r - mean)^2)
        """
        if moments is None:
            return
        fraction = self.images / self.count
        mean, var = moments
        off = self.buffers("off", mean.shape, mean.dtype)
        off[...] = mean
        mean *= fraction
        self.ranks.all_reduce(mean)
        off -= mean
        off *= off
        var += off
        var *= fraction
        self.ranks.all_reduce(var)

    def batch_norm_dx(self, *args):
        self.ops.batch_norm_dx(*args, self.whole_sums)

    def whole_sums(self, dgamma, dbeta, rows):
        sums = self.buffers("sums", (2, *dgamma.shape), dgamma.dtype)
        sums[0] = dgamma
        sums[1] = dbeta
        self.ranks.all_reduce(sums)
        return *sums, rows // self.images * self.count

    def latent_dx(self, dz, mean, s, eps, analytic, scale, *results):
        self.ops.latent_dx(dz, mean, s, eps, analytic, 1 / self.count, *results)

    def tanh_gaussian(self, a, b, x, log_sigma, scale, *results):
        self.ops.tanh_gaussian(a, b, x, log_sigma, 1 / self.count, *results)

    def tanh_gaussian_pixel(self, a, b, x, scale, *results):
        self.ops.tanh_gaussian_pixel(a, b, x, 1 / self.count, *results)

    def student(self, f, log_scale, b, nu, scale, *results):
        self.ops.student(f, log_scale, b, nu, 1 / self.count, *results)

    def log_sigma_dx(self, rec, log_sigma, size, scale, dlog_sigma):
        self.ops.log_sigma_dx(rec, log_sigma, size, 1 / self.count, dlog_sigma)

    def fit_sigma(self, rec, size, log_sigma):
        whole = self.buffers("rec", (self.count,), rec.dtype)
        self.ops.fit_sigma(self.ranks.gather(rec, whole), size, log_sigma)
