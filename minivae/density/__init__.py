"""What ln p(x) is: estimates, baselines without a network, and the card that prints them."""
