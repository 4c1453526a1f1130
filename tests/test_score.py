"""Scores of single images: those of the card, whatever company an image has, and what the columns say."""

import json

import numpy as np
import pytest
from test_density import SETTINGS, be_quick, evaluated, make_run

from minivae.density import score
from minivae.errors import UserError
from minivae.images import given
from minivae.training import figures


@pytest.fixture(scope="module")
def scored(ops, tmp_path_factory):
    """(run, vae, test images in the card's order, the card, their columns) at sigma 1, with AIS."""
    run, vae, dataset = make_run(tmp_path_factory.mktemp("score"), ops)
    with pytest.MonkeyPatch.context() as patch:
        be_quick(patch)
        card = evaluated(run, vae, dataset, 3, images=12, ais_images=5)
        images = given.test_images(dataset).images
        columns = score.score(vae, images, None, SETTINGS, True, card["bounds"]["elbo_each"])
    return run, vae, images, card, columns


def test_of_the_runs_test_images_they_are_the_cards(scored):
    _, _, _, card, columns = scored
    bounds = card["bounds"]["rows"]
    np.testing.assert_allclose(columns["elbo"], card["bounds"]["elbo_each"], rtol=1e-12)
    assert columns["iwae"].mean() == pytest.approx(bounds["iwae"]["nats_per_image"], rel=1e-12)
    np.testing.assert_allclose(columns["ais"][:5], card["annealed"]["ais_each"], rtol=1e-12)
    assert columns["kl"].mean() == pytest.approx(card["bounds"]["figures"]["KL"], rel=1e-12)
    effective = card["bounds"]["figures"]["effective_importance_samples"]
    assert columns["effective_samples"].mean() == pytest.approx(effective, rel=1e-12)


def test_company_order_and_blocks_change_nothing(scored, monkeypatch):
    _, vae, images, card, columns = scored
    be_quick(monkeypatch)
    monkeypatch.setattr(score, "BLOCK", 2)
    rows = [7, 0, 11]
    mine = score.score(vae, images[rows], None, SETTINGS, True, card["bounds"]["elbo_each"])
    assert list(mine) == list(columns)
    for name, values in mine.items():
        np.testing.assert_allclose(values, columns[name][rows], rtol=1e-12, err_msg=name)  # sums over draws round


def test_what_the_columns_say(scored):
    _, _, images, _, columns = scored
    loss = columns["rec"] + columns["kl"] + images[0].size / 2 * np.log(2 * np.pi)
    np.testing.assert_allclose(-loss, columns["elbo"], atol=3)  # another estimate of the same
    assert (-loss - columns["elbo"]).mean() == pytest.approx(0, abs=0.7)
    np.testing.assert_allclose(columns["ais_95"], columns["ais"] - np.log(20))
    levels = columns["ais"] - images[0].size * np.log(127.5)  # ln p of pixels from 0 to 256
    np.testing.assert_allclose(columns["bits_per_dim"], -levels / np.log(2) / images[0].size)
    assert sorted(columns["rank"]) == list(range(1, 13))
    assert columns["elbo"][columns["rank"] == 1] == columns["elbo"].max()


def test_the_markov_bound_holds(rng):
    """A mean of positive weights exceeds 20 times their expectation less often than once in 20."""
    weights = np.exp(rng.normal(0, 3, (20000, 4)) - 4.5)  # of mean 1
    assert 0 < (weights.mean(1) > 20).mean() < 1 / 20


def test_without_ais_and_ranks(scored):
    _, vae, images, _, _ = scored
    plain = score.score(vae, images[:3], None, SETTINGS, False, None)
    assert list(plain) == ["elbo", "rec", "kl", "iwae", "effective_samples", "bits_per_dim"]
    levels = plain["iwae"] - images[0].size * np.log(127.5)
    np.testing.assert_allclose(plain["bits_per_dim"], -levels / np.log(2) / images[0].size)


def test_the_card_must_be_of_the_same_checkpoint(scored):
    run, _, _, card, _ = scored
    assert score.known_card(run, 3) == json.loads(json.dumps(card))
    assert score.known_card(run, 4) == {}
    whole = (run / "density.json").read_text()
    for damaged in (whole[:100], "[]", "{}"):
        (run / "density.json").write_text(damaged)
        with pytest.raises(UserError, match="density.json cannot be read as a density card"):
            score.known_card(run, 3)
    (run / "density.json").unlink()
    assert score.known_card(run, 3) == {}
    (run / "density.json").write_text(whole)


@pytest.mark.parametrize("count, shown", [(12, 6), (25, 10), (1, 1)])
def test_the_picture_has_the_extremes(scored, tmp_path, monkeypatch, count, shown):
    _, vae, images, _, _ = scored
    drawn = []
    monkeypatch.setattr(figures, "save_pairs", lambda path, x, x_hat, columns: drawn.append((x, columns)))
    images = np.concatenate([images, images, images])[:count]
    bits = np.random.default_rng(1).permutation(count)
    score.draw(tmp_path / "scores.png", vae, images, None, {"bits_per_dim": bits})
    (x, columns), = drawn
    expected = images[np.argsort(-bits)] / 127.5 - 1
    assert columns == shown
    np.testing.assert_allclose(x[:shown], expected[:shown], atol=1e-6)
    np.testing.assert_allclose(x[shown:], expected[-shown:], atol=1e-6)
