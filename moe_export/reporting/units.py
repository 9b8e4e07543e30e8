"""Numbers as text for tables and pictures; JSON holds plain numbers."""

from __future__ import annotations

NONE = "–"
"""Text in place of a missing number."""

_SIZES = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def size(count_bytes: float | None) -> str:
    """Formats a number of bytes in powers of 1024, to three or four figures.

    >>> size(14_680_064), size(None)
    ('14.0 MiB', '–')
    """
    if count_bytes is None:
        return NONE
    for unit, factor in _SIZES:
        if abs(count_bytes) >= factor:
            scaled = count_bytes / factor
            return f"{scaled:.2f} {unit}" if abs(scaled) < 10 else f"{scaled:.1f} {unit}"
    return f"{count_bytes:.0f} B"


def percent(fraction: float | None) -> str:
    """Formats a fraction as a percentage with one decimal, without it if it is 0.

    >>> percent(1.0), percent(0.9675), percent(0.99996)
    ('100 %', '96.8 %', '>99.9 %')
    """
    if fraction is None:
        return NONE
    # A part must not be rounded to everything or to nothing.
    if 0.9995 <= fraction < 1:
        return ">99.9 %"
    if 0 < fraction < 0.0005:
        return "<0.1 %"
    return f"{points(fraction)} %"


def points(fraction: float) -> str:
    """Formats a fraction as the number of its percentage."""
    return f"{100 * fraction:.1f}".removesuffix(".0")


def count(number: float | None) -> str:
    """Formats a whole number with separated thousands.

    >>> count(8192)
    '8,192'
    """
    return NONE if number is None else f"{number:,.0f}"


def figures(number: float | None, digits: int = 3) -> str:
    """Formats a number to some significant figures, without an exponent above 0.001.

    >>> figures(1234.5), figures(0.0123456), figures(5.1e-06)
    ('1,234', '0.0123', '5.1e-06')
    """
    if number is None:
        return NONE
    if number == 0:
        return "0"
    if abs(number) < 1e-3:
        return f"{number:.{digits}g}"
    if abs(number) >= 10 ** (digits - 1):
        return f"{number:,.0f}"
    return f"{number:#.{digits}g}".removesuffix(".")


def plain(number: float) -> str:
    """Formats a number without trailing zeros.

    >>> plain(64.0), plain(60.5)
    ('64', '60.5')
    """
    return f"{number:,.6g}"


def parameters(number: float) -> str:
    """Formats a number of parameters in thousands, millions or billions.

    >>> parameters(3_809_280)
    '3.81 M'
    """
    for unit, factor in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number:.0f}"


def seconds(time_s: float | None) -> str:
    """Formats a duration in seconds, or from 2 minutes on in minutes.

    >>> seconds(0.41), seconds(754)
    ('0.41 s', '12.6 min')
    """
    if time_s is None:
        return NONE
    return (
        f"{time_s / 60:.1f} min"
        if time_s >= 120
        else f"{figures(time_s, 2 if time_s < 1 else 3)} s"
    )


def ratio(number: float | None) -> str:
    """Formats a factor.

    >>> ratio(1.684)
    '1.68×'
    """
    return NONE if number is None else f"{number:.2f}×"
