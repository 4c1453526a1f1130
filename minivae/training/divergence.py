"""Training that diverges and stays finite: losses far above the best one."""

TIMES = 10
PER_VALUE = 0.1  # nats


class Divergence:
    """Told of a run's training losses in turn, in nats per image, for images of `size` values.

    A loss has diverged if it is more than TIMES the best one so far. For a fitted sigma that says nothing, since its
    losses fall through zero. So where TIMES the best is less than PER_VALUE nats for each value, a loss has diverged
    if it is worse by that much than the run's first.
    """

    def __init__(self, size, losses=()):
        self.margin = PER_VALUE * size
        self.first = self.best = None
        for loss in losses:
            self.diverged(loss)

    def diverged(self, loss):
        """Whether this loss, the next one, has diverged."""
        if self.first is None:
            self.first = self.best = loss
        multiple = TIMES * self.best
        limit = multiple if multiple > self.margin else self.first + self.margin
        self.best = min(self.best, loss)
        return loss > limit
