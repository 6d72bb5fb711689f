"""Augmentation on the device, inside the compiled step."""

import jax
import jax.numpy as jnp


def keep(key: jax.Array, images: jax.Array) -> jax.Array:
    """No augmentation."""
    del key
    return images


def crop_flip(key: jax.Array, images: jax.Array, pad: int = 4) -> jax.Array:
    """A random shift by up to `pad` pixels, zeros moving in, and a mirror at evens.

    Args:
      key: one key for the whole batch.
      images: [batch, height, width, channels].
      pad: the largest shift.
    """
    count, height, width, channels = images.shape
    shift_key, flip_key = jax.random.split(key)
    shift = jax.random.randint(shift_key, (count, 2), 0, 2 * pad + 1)
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    def crop(image: jax.Array, at: jax.Array) -> jax.Array:
        size = (height, width, channels)
        return jax.lax.dynamic_slice(image, (at[0], at[1], 0), size)

    cropped = jax.vmap(crop)(padded, shift)
    flip = jax.random.bernoulli(flip_key, shape=(count, 1, 1, 1))
    return jnp.where(flip, cropped[:, :, ::-1], cropped)
