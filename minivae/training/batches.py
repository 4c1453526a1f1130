"""Where the images of each step come from: all are on the device, or those of the next steps are brought in time.

Which images a step takes follows from the seed and the step alone (philox.choose), wherever the images are.
"""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from minivae.images.stream import CHUNK_BYTES, Streamed
from minivae.ops.philox import STREAMS, choose

LONGEST_CHUNK = 1000  # steps whose images are drawn at a time


class Batches:
    """N training images of each batch, in chunks of S steps; a background thread prepares the next chunk.

    shard: the slice of a batch's images that this rank has.

    Step t of the run takes the rows index[t mod S] of device_images; index (S, N) int32. If all images fit on the
    device, each chunk brings a new index. If they are too large for the host's memory, or for half of the device's free
    memory, each chunk brings its S N images, and the index stays as it is. With labels (int32, one for each image) a
    chunk also brings those of its images.
    """

    def __init__(self, images, config, ops, shard, labels=None):
        self.images = images
        self.labels = labels
        self.ops = ops
        self.seed = config.seed
        self.batch_size = config.batch_size
        self.shard = shard
        n = shard.stop - shard.start
        steps = min(config.log_every, LONGEST_CHUNK)
        self.stream = isinstance(images, Streamed) or 2 * images.nbytes > ops.free_memory()
        if self.stream:
            steps = max(1, min(steps, CHUNK_BYTES // (n * math.prod(config.shape))))
            self.index = ops.xp.arange(steps * n, dtype=np.int32).reshape(steps, n)
            self.device_images = ops.xp.zeros((steps * n, *config.shape), np.uint8)
        else:
            self.index = ops.xp.zeros((steps, n), np.int32)
            self.device_images = ops.xp.asarray(images)
        self.buffer = ops.DoubleBuffer(self.device_images if self.stream else self.index)
        if labels is not None:
            self.device_labels = ops.xp.zeros((steps, n), np.int32)
            self.label_buffer = ops.DoubleBuffer(self.device_labels)
        self.pool = ThreadPoolExecutor(1)
        self.next = {}  # {chunk: the Future of it}: while one is on the device, the next is made ready

    def prepare(self, step):
        """Have the chunk of this step on the device."""
        chunk = step // len(self.index)
        if chunk + 1 not in self.next:
            ready = self.next.get(chunk) or self.pool.submit(self.fill, chunk)
            ready.result()
            self.buffer.take()
            if self.labels is not None:
                self.label_buffer.take()
            self.next = {chunk + 1: self.pool.submit(self.fill, chunk + 1)}

    def fill(self, chunk):
        rows = self.draw(chunk)
        self.buffer.fill(self.images[rows.reshape(-1)] if self.stream else rows)
        if self.labels is not None:
            self.label_buffer.fill(self.labels[rows])

    def gather(self, t, x):
        """x (N, H, W, C) = the images of step t (1,), in [-1, 1]; prepare() must have been called for that step."""
        self.ops.gather(self.device_images, self.index, t, x)

    def gather_labels(self, t, labels):
        """labels (N,) int32 = those of the same images."""
        self.ops.take_labels(self.device_labels, t, labels)

    def draw(self, chunk):
        """Rows of `images` (S, N): without replacement within a step, independent between steps."""
        size = len(self.index)
        steps = range(chunk * size, (chunk + 1) * size)
        batches = [choose(self.seed, STREAMS["batch"], t, self.batch_size, len(self.images)) for t in steps]
        return np.stack(batches)[:, self.shard]
