"""The incomplete beta function, its inverse and the normal distribution, in float64, no scipy.

Student's t, the binomial and the Clopper-Pearson bounds are all the incomplete beta function.
Source: the continued fraction [DLMF] 8.17.22, evaluated by the modified Lentz method.
"""

from __future__ import annotations

import math

#: Largest shape parameter: a binomial with so many trials, or Student's t with twice as many
#: degrees of freedom.
MAX_PARAMETER = 1e8

# Lentz's method replaces an exact zero by this; any value far below the machine epsilon will do.
_TINY = 1e-300
# One unit in the last place of a double: the fraction cannot converge further.
_RELATIVE_PRECISION = 2.3e-16
# From here on Stirling's series is exact to double precision.
_STIRLING_FROM = 10.0
# Its coefficients B_2k / (2k (2k - 1)), [DLMF] 5.11.1.
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
# Bisection steps of the normal quantile: each halves the error, so this exhausts a double.
_BISECTIONS = 80


def _beta_fraction(a: float, b: float, x: float) -> float:
    """Evaluate the continued fraction of I_x(a, b); fast for x < (a + 1) / (a + b + 2)."""
    c = 1.0
    d = 1.0 - (a + b) * x / (a + 1.0)
    d = 1.0 / (d if abs(d) > _TINY else _TINY)
    value = d
    m = 0
    # The number of terms grows like the square root of the larger parameter, which is bounded.
    while True:
        m += 1
        even = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0))
        for term in (even, odd):
            d = 1.0 + term * d
            d = 1.0 / (d if abs(d) > _TINY else _TINY)
            c = 1.0 + term / c
            c = c if abs(c) > _TINY else _TINY
            value *= c * d
        if abs(c * d - 1.0) <= _RELATIVE_PRECISION:
            return value


def _stirling_remainder(z: float) -> float:
    """Return ln Γ(z) - ((z - ½) ln z - z + ½ ln 2π), for z at least 10."""
    return sum(coefficient / z ** (2 * k + 1) for k, coefficient in enumerate(_STIRLING))


def _log_front(a: float, b: float, x: float, complement: float) -> float:
    """Return ln(x^a (1 - x)^b / B(a, b)).

    With large parameters the three log-gammas are huge and nearly cancel; Stirling's series lets
    their large parts cancel on paper instead.
    """
    if a < b:
        a, b, x, complement = b, a, complement, x
    if b >= _STIRLING_FROM:
        excess = x * b - complement * a
        remainder = _stirling_remainder(a) + _stirling_remainder(b) - _stirling_remainder(a + b)
        exponent = a * math.log1p(excess / a) + b * math.log1p(-excess / b)
        return exponent + 0.5 * math.log(a / (a + b) * b / math.tau) - remainder
    # Near one the logarithm is taken of the complement, which holds the digits.
    log_x = math.log(x) if x < 0.5 else math.log1p(-complement)
    powers = a * log_x + b * math.log(complement)
    if a >= _STIRLING_FROM:
        remainder = _stirling_remainder(a) - _stirling_remainder(a + b)
        log_ratio = b - (a - 0.5) * math.log1p(b / a) - b * math.log(a + b) + remainder
        return powers - math.lgamma(b) - log_ratio
    return powers - math.lgamma(a) - math.lgamma(b) + math.lgamma(a + b)


def regularised_incomplete_beta(a: float, b: float, x: float, *, complement: float) -> float:
    """Return I_x(a, b), the distribution function at x of a Beta(a, b) variable.

    Args:
        a: first shape parameter, positive, at most 1e8.
        b: second shape parameter, likewise.
        x: where to evaluate, in [0, 1].
        complement: 1 - x. Passed apart, because the caller often knows it without cancellation.

    Returns:
        A probability in [0, 1]; relative error below 1e-10 for parameters up to 1e5.

    Raises:
        ValueError: a parameter is not in (0, 1e8], or `x` is outside [0, 1].
    """
    if not (0.0 < a <= MAX_PARAMETER and 0.0 < b <= MAX_PARAMETER):
        raise ValueError(
            f"shape parameters must be positive and at most {MAX_PARAMETER:g}, got {a!r} and {b!r}"
        )
    if not 0.0 <= x <= 1.0:
        raise ValueError(f"x must be in [0, 1], got {x!r}")
    if x == 0.0 or complement == 0.0:
        return 0.0 if x == 0.0 else 1.0
    front = math.exp(_log_front(a, b, x, complement))
    if x < (a + 1.0) / (a + b + 2.0):
        return min(1.0, front * _beta_fraction(a, b, x) / a)
    return max(0.0, 1.0 - front * _beta_fraction(b, a, complement) / b)


def inverse_regularised_incomplete_beta(a: float, b: float, probability: float) -> float:
    """Return the x in [0, 1] with I_x(a, b) = `probability`, to the last digits of a double.

    Args:
        a: first shape parameter, positive, at most 1e8.
        b: second shape parameter, likewise.
        probability: in [0, 1].

    Returns:
        The quantile. Bisection: slow (about a millisecond), but it cannot fail.

    Raises:
        ValueError: a parameter is not in (0, 1e8], or `probability` is outside [0, 1].
    """
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"probability must be in [0, 1], got {probability!r}")
    low, high = 0.0, 1.0
    middle = 0.5
    while middle not in (low, high) and high - low > _RELATIVE_PRECISION * low:
        below = regularised_incomplete_beta(a, b, middle, complement=1.0 - middle) < probability
        low, high = (middle, high) if below else (low, middle)
        middle = 0.5 * (low + high)
    return middle


def binomial_lower_end(successes: int, trials: int, tail: float) -> float:
    """Return the success probability at which so many successes or more have probability `tail`.

    [CP34]. 0 without successes.

    Raises:
        ValueError: `successes` is not between 0 and `trials`.
    """
    _check_counts(successes, trials)
    if successes == 0:
        return 0.0
    return inverse_regularised_incomplete_beta(successes, trials - successes + 1, tail)


def binomial_upper_end(successes: int, trials: int, tail: float) -> float:
    """Return the success probability at which so many successes or fewer have probability `tail`.

    [CP34]. 1 without failures.

    Raises:
        ValueError: `successes` is not between 0 and `trials`.
    """
    _check_counts(successes, trials)
    if successes == trials:
        return 1.0
    return inverse_regularised_incomplete_beta(successes + 1, trials - successes, 1.0 - tail)


def normal_cdf(x: float) -> float:
    """Return Φ(x), the probability that a standard normal variable is at most `x`."""
    return 0.5 * math.erfc(-x / math.sqrt(2.0))


def normal_quantile(probability: float) -> float:
    """Return the z with Φ(z) = `probability`, by bisection.

    Args:
        probability: in [0.5, 1]; 1 gives the largest z with a tail in double precision, about 38.

    Raises:
        ValueError: `probability` is outside.
    """
    if not 0.5 <= probability <= 1.0:
        raise ValueError(f"probability must be in [0.5, 1], got {probability!r}")
    # Beyond 40 the tail is zero in double precision.
    low, high = 0.0, 40.0
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if normal_cdf(-middle) > 1.0 - probability else (low, middle)
    return 0.5 * (low + high)


def _check_counts(successes: int, trials: int) -> None:
    if not 0 <= successes <= trials:
        raise ValueError(f"need 0 ≤ successes ≤ trials, got {successes!r} of {trials!r}")
