"""minivae: a variational autoencoder written from scratch, with its gradients and kernels by hand."""

__version__ = "1.0.0"


def load(run, gpu=False):
    """The trained model of a run directory, a trained.TrainedVAE on the CPU or a GPU. UserError if there is none."""
    from minivae.ops import operations
    from minivae.trained import TrainedVAE
    from minivae.training.checkpoint import open_model

    opened, vae, *_ = open_model(run, operations(gpu))
    return TrainedVAE(vae, opened.config.label_names)
