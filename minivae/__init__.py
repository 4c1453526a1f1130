"""minivae: a variational autoencoder written from scratch, with its gradients and kernels by hand."""

__version__ = "1.0.0"
