"""What training will take, told before it is paid: memory and the size of a checkpoint, from the settings alone."""

import math

import numpy as np

from minivae.errors import UserError
from minivae.images.stream import CHUNK_BYTES, memory
from minivae.training.evaluation import TEST_BATCH
from minivae.vae import Widths

# weights of the convolutions, whatever the images' size
CONVOLUTIONS = 2e6
# bytes, measured on a CPU: within 3 % for batches of 8 to 256 and images from 32x32 to 128x128
LIBRARIES = 145e6
COPIES = 10  # of the parameters: gradients and Adam's moments too, and more while a checkpoint is made
TRAINED_PIXEL = 1000  # for each pixel of a batch
TESTED_PIXEL = 750  # for each pixel of the test images that are evaluated at a time
SAVED = 3  # copies of the parameters in a checkpoint
TELLING = 1 / 4  # of the memory: from there on it is said how much that is


def told(config, train_images, test_images, ops, ranks=1):
    """A line about what a run with this config will take. UserError if that is more memory than the device has.

    Of several ranks it is what each takes.
    """
    count = parameters(config)
    size = 4 * count  # float32
    pixels = math.prod(config.shape[:2])
    held = train_images.nbytes if isinstance(train_images, np.ndarray) else CHUNK_BYTES
    need = (LIBRARIES + COPIES * size + TRAINED_PIXEL * pixels * math.ceil(config.batch_size / ranks)
            + TESTED_PIXEL * pixels * min(TEST_BATCH, len(test_images)) + held)
    room = ops.free_memory()
    if math.isinf(room):  # the images of a CPU are in its memory already
        room = memory()
    if need > room:
        raise UserError(f"training would take about {need / 1e6:,.0f} MB of memory, and there are {room / 1e6:,.0f}; "
                        "smaller images (--size), a smaller --batch-size or --latent take less")
    share = f", {need / room:.0%} of what there is" if need > TELLING * room else ""
    return (f"{count / 1e6:,.1f} million parameters; about {need / 1e6:,.0f} MB of memory{share}; two checkpoints of "
            f"{SAVED * size / 1e6:,.0f} MB are kept")


def parameters(config):
    """About how many parameters the model has: those of its dense layers grow with the images and the code."""
    widths = Widths()
    cells = config.shape[0] // 8 * (config.shape[1] // 8)
    encoder = cells * widths.conv[-1] * widths.hidden + 2 * widths.hidden * config.latent
    return encoder + config.latent * cells * widths.generator[0] + CONVOLUTIONS
