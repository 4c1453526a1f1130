"""Each claim of examples/claims.py holds with small settings too, and the page has them all."""

import re
from pathlib import Path

import claims
import pytest
from PIL import Image

from minivae.ops import VAR_FLOOR, plain

ROOT = Path(__file__).parent.parent
SMALL = {
    "mixture": {"count": 200, "seeds": 2, "components": (1, 3), "rounds": 10},
    "three_forms": {"count": 10},
    "inference": {"seeds": 2, "steps": 500},
    "two_gradients": {"draws": 2000, "dimensions": (1, 10), "seeds": 2},
    "tug_of_war": {"sigmas": (30, 0.1), "steps": 60, "seeds": 2},
    "without_a_floor": {"steps": 4000, "vae_steps": 100, "seeds": 2},
    "dirty_secret": {"steps": 150, "shown": 3, "train": 200},
    "naive": {"count": 4, "most": 50, "chains": 4, "transitions": 20},
    "likelihood_and_kl": {"steps": 5, "train": 200},
}


@pytest.mark.parametrize("claim", claims.CLAIMS, ids=list(SMALL))
def test_a_claim_holds(claim):
    figure, text, holds = claim(**SMALL[claim.__name__])
    assert holds, text
    assert figure.axes and ("±" in text or claim is claims.three_forms)
    assert plain.VAR_FLOOR == VAR_FLOOR
    claims.plt.close(figure)


def test_the_page_has_every_claim_with_its_picture():
    page = (ROOT / "docs" / "claims.md").read_text()
    for number, claim in enumerate(claims.CLAIMS, 1):
        found = re.search(
            rf"<!-- claim {number} -->\n(.*?)<!-- /claim {number} -->", page, re.DOTALL
        )[1]
        assert found.startswith(f"## {number}. {claim.__doc__.splitlines()[0]}\n")
        picture = ROOT / "docs" / f"claims-{number}.png"
        assert f"({picture.name})" in found and picture.stat().st_size < 100_000
        with Image.open(picture) as image:
            image.verify()
