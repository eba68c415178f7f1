"""Feature maps: their list, their values in both number types, what may be given, what is refused."""

import re

import numpy as np
import pytest
import recollect as rc

from tests import fastweight_checks as fw
from tests.reference import feature_maps as maps


def value(x, feature_map, **more):
    return rc.fastweight.feature_map(x, fw.public(feature_map), **more)


def test_the_list_has_every_map():
    names = rc.fastweight.feature_maps()
    assert len(set(names)) == len(list(names))
    for name in maps.NAMES:
        assert any(found.startswith(name) for found in names), name


@pytest.mark.parametrize("name", fw.MAPS)
@pytest.mark.parametrize("K", [1, 2, 7, 33, 64])
def test_values(rng, dtype, name, K):
    how = fw.feature_maps(K)[name] if (name, K) != ("dpfp 3", 1) else ("dpfp", 1)  # nu < 2 K
    for shape in ((K,), (5, K), (2, 3, 4, K), (0, K)):
        x = fw.draw(rng, dtype, *shape)
        phi = value(x, how)
        assert phi.dtype == dtype and phi.shape == (*shape[:-1], maps.width(how, K))
        exact = maps.value(x.astype(fw.judge(dtype)), how)
        np.testing.assert_allclose(phi, exact, rtol=fw.TOL[np.dtype(dtype).name], atol=1e-30)


def test_elu1_keeps_small_features(dtype):
    """exp(x) where x <= 0, not elu(x) + 1, which cancels."""
    x = np.array([-20.0, -60.0, -1.0, -1e-8, 0.0, 1e-8, 3.0], dtype)
    np.testing.assert_allclose(value(x, "elu1"), maps.value(x.astype(float), "elu1"), rtol=4 * np.finfo(dtype).eps)


def test_dpfp_in_its_index_form(dtype):
    x = np.array([1.0, -2.0, 3.0], dtype)
    r = [1, 0, 3, 0, 2, 0]
    for nu in (1, 2, 3, 5):
        exact = [r[i] * r[(i + k) % 6] for k in range(1, nu + 1) for i in range(6)]
        np.testing.assert_array_equal(value(x, ("dpfp", nu)), exact)
    assert (value(x, ("dpfp", 3)).reshape(3, 6)[2] == 0).all(), "the block of K holds r_i r_(i + K) = 0"


def test_softmax_does_not_overflow(dtype):
    x = np.array([[1000.0, 0.0, -1000.0], [-1e4, -1e4, -1e4]], dtype)
    np.testing.assert_allclose(value(x, "softmax"), [[1, 0, 0], [1 / 3, 1 / 3, 1 / 3]], rtol=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1e-15, 1.0, 1e15, 1e30])
def test_unit_vectors_of_every_length(rng, size):
    """No squared length may leave the range of the type."""
    for dtype, largest in ((np.float32, 1e15), (np.float64, 1e30)):
        if not 1 / largest <= size <= largest:
            continue
        x = fw.draw(rng, dtype, 5, 9) * dtype(size)
        np.testing.assert_allclose(
            value(x, "l2"), maps.value(x.astype(np.longdouble), "l2"), rtol=1e-5 if dtype == np.float32 else 1e-12
        )
    assert (value(np.zeros((2, 4)), "l2") == 0).all()


def test_favor_estimates_the_softmax_kernel(rng):
    """phi(q) . phi(k) is exp(q . k / sqrt(K)) in the mean over matrices."""
    q, k = rng.standard_normal((2, 6)) * 0.7
    found = []
    for R in rng.standard_normal((2000, 8, 6)):
        phi = value(np.stack([q, k]), ("favor", R))
        found.append(phi[0] @ phi[1])
    found = np.array(found)
    assert abs(found.mean() - np.exp(q @ k / np.sqrt(6))) < 4 * found.std() / np.sqrt(len(found))


def test_strides_and_fresh_results(rng, dtype, same_bits):
    x = fw.draw(rng, dtype, 4, 6)
    for name in fw.MAPS:
        how = fw.feature_maps(6)[name]
        plain = value(x, how)
        for other in (
            np.asfortranarray(x),
            x[::-1].copy()[::-1],
            np.repeat(x, 2, 1)[:, ::2],
            x[:, ::-1].copy()[:, ::-1],
        ):
            same_bits(value(other, how), plain)
        assert not np.shares_memory(value(x, how), x)


# ------------------------------------------------------------------------------------------------------- wrong calls


@pytest.mark.parametrize("name", ["other", "", "ELU1", "elu", "relu ", "dpfp0"])
def test_unknown_maps(name):
    for wrong in (
        lambda: rc.fastweight.feature_map(np.ones(3), name),
        lambda: rc.fastweight.linear_attention(*[np.ones((4, 3))] * 3, feature_map=name),
        lambda: rc.fastweight.delta_rule(*[np.ones((4, 3))] * 3, np.ones(4), feature_map=name),
    ):
        with pytest.raises(ValueError, match=rf"fastweight\.\w+.*\bfeature_map\b.*{re.escape(name)}") as error:
            wrong()
        assert "elu1" in str(error.value), "and tells what there is"


@pytest.mark.parametrize("bad", [3, 1.5, ["relu"], b"relu", {"a": 1}], ids=repr)
def test_what_is_no_map(bad):
    with pytest.raises((TypeError, ValueError), match=r"fastweight\.feature_map.*\bfeature_map\b"):
        rc.fastweight.feature_map(np.ones(3), bad)


@pytest.mark.parametrize("nu", [0, -1, 6, 100])
def test_nu_is_from_1_to_2K_less_1(nu):
    with pytest.raises(ValueError, match=rf"\bnu\b.*{nu}"):
        rc.fastweight.feature_map(np.ones(3), rc.fastweight.dpfp(nu))


@pytest.mark.parametrize("nu", [1.5, "2", None])
def test_nu_is_a_whole_number(nu):
    with pytest.raises(TypeError, match=r"\bnu\b"):
        rc.fastweight.dpfp(nu)


@pytest.mark.parametrize(
    ("matrix", "came"), [(np.ones((4, 7)), r"\(4, 7\)"), (np.ones(6), r"\(6,\)"), (np.ones((2, 4, 6)), r"\(2, 4, 6\)")]
)
def test_the_matrix_of_favor_fits_the_keys(matrix, came):
    with pytest.raises(ValueError, match=rf"\bmatrix\b.*{came}"):
        rc.fastweight.feature_map(np.ones((3, 6)), rc.fastweight.favor(matrix))


def test_the_operand_has_an_axis_of_numbers():
    for bad, kind in ((1.0, ValueError), (np.array("x"), TypeError), (np.ones(3) * 1j, TypeError), ([None], TypeError)):
        with pytest.raises(kind, match=r"fastweight\.feature_map.*\bx\b"):
            rc.fastweight.feature_map(bad, "relu")
