"""The paper's equations, pixel by pixel in float64, as written; slow on purpose."""

import numpy as np
import scipy.ndimage

ZETA = 1e-6  # relative to the mean saliency


def translate(z, t):
    """Eq. 3 on one ``[H, W]`` map or ``[C, H, W]`` image."""
    out = np.zeros_like(z)
    height, width = z.shape[-2:]
    for i in range(height):
        for j in range(width):
            if 0 <= i - t[0] < height and 0 <= j - t[1] < width:
                out[..., i, j] = z[..., i - t[0], j - t[1]]
    return out


def mask(s0, s1, t):
    """Eq. 2's M, with 1 where the translated image 1 does not reach; ``[H, W]`` each."""
    covered = translate(np.ones_like(s1), t)
    moved = translate(s1, t)
    zeta = ZETA * (s0 + s1).mean()
    return np.where(covered == 1, s0 / (s0 + moved + zeta), 1.0)


def mix(x0, x1, s0, s1, t):
    """Eq. 2: the mixed image ``[C, H, W]`` and its mask ``[H, W]``."""
    m = mask(s0, s1, t)
    return m * x0 + (1 - m) * translate(x1, t), m


def objective(s0, s1, t):
    """The total saliency of the mix, v(t)."""
    m = mask(s0, s1, t)
    return (m * s0 + (1 - m) * translate(s1, t)).sum()


def all_translations(height, width):
    return [(i, j) for i in range(1 - height, height) for j in range(1 - width, width)]


def saliency(gradient):
    """Eq. 1, smoothing and normalisation, by NumPy and SciPy in float64."""
    norm = np.sqrt((gradient**2).sum(axis=1))
    sigma = min(norm.shape[1:]) / 32
    radius = int(np.ceil(2 * sigma))
    smooth = np.stack(
        [scipy.ndimage.gaussian_filter(n, sigma, mode="mirror", radius=radius) for n in norm]
    )
    return (smooth / smooth.sum(axis=(1, 2), keepdims=True))[:, None]
