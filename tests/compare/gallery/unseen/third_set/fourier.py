"""FFT: circular convolution, a low-pass filter."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

KEPT = 3  # frequencies of the filter


def circular(x, k):
    return torch.fft.irfft(torch.fft.rfft(x) * torch.fft.rfft(k), n=x.shape[-1])


def correlate(g, x):
    return torch.fft.irfft(torch.fft.rfft(g) * torch.fft.rfft(x).conj(), n=g.shape[-1])


def circular_backward(g, x, k):
    return correlate(g, k), correlate(g, x).sum(0)


def without_wrapping(g, x, k):
    """The gradient of x of a convolution whose output ends with the signal."""
    length = x.shape[-1]
    padded = torch.nn.functional.pad(g, (0, length))
    return correlate(padded, torch.nn.functional.pad(k, (0, length)))[..., :length], circular_backward(g, x, k)[1]


def low_pass(x):
    frequencies = torch.fft.rfft(x)
    return torch.fft.irfft(frequencies * (torch.arange(frequencies.shape[-1]) < KEPT), n=x.shape[-1])


OPERATIONS = [
    Formulas(
        "circular convolution",
        circular,
        lambda: {"x": torch.randn(3, 7), "k": torch.randn(7)},
        circular_backward,
        (
            Mistake(
                "circular convolution, no conjugate",
                lambda g, x, k: (circular_backward(g, x, k)[0], circular(g, x).sum(0)),
                named="in the gradient of k the conjugate of x's spectrum is missing: convolved, not correlated",
                kinds=("conjugated", "flipped", "not transposed", "permuted"),
                named_words=(r"conjugat", r"revers|flip|-i \(mod", r"transpos", r"convol|correl"),
                located=(r"gradient of k",),
            ),
            Mistake(
                "circular convolution, not wrapped",
                without_wrapping,
                named="the products that wrap around the end are missing in the gradient of x",
                kinds=("missing term",),
                named_words=(
                    r"wrap|circular|around",
                    r"missing.*(before|after|later|earlier)",
                    r"(before|after).*missing",
                ),
                located=(r"gradient of x", r"column|wrap|index"),
            ),
        ),
    ),
    Formulas(
        "low-pass filter",
        low_pass,
        lambda: torch.randn(3, 8),
        lambda g, x: low_pass(g),
        (
            Mistake(
                "low-pass filter, all frequencies",
                lambda g, x: g.clone(),
                named="backward does not filter: the incoming gradient passes unchanged",
                kinds=("passes the incoming gradient through", "step left out"),
                named_words=(r"unchanged", r"filter", r"mask"),
                located=(r"gradient of (x|input 0)",),
            ),
            Mistake(
                "low-pass filter, unnormalised",
                lambda g, x: low_pass(g) * g.shape[-1],
                named="the inverse transform is not divided by the length 8",
                kinds=("constant factor",),
                named_words=(r"\b8 times",),
                located=(r"gradient of (x|input 0)",),
            ),
        ),
    ),
]
WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
