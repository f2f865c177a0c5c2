"""Random numbers that depend on what is drawn, never on which process draws it.

Everything random in a run comes from a generator seeded by (seed, purpose, place), so that the
number of workers, a resumed run or code elsewhere that draws numbers changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import torch


class Purpose(IntEnum):
    """What a random stream is for; streams of two purposes are unrelated."""

    SHUFFLING = 1
    AUGMENTATION = 2
    STOCHASTIC_LAYERS = 3


def derive_seed(seed: int, purpose: Purpose, *place: int) -> int:
    """Return 32 bits mixed from the run's seed, the purpose and the place.

    torch's CPU generator uses the low 32 bits of a seed alone, hence a real mixing function:
    a sum would give image 1 of epoch 0 the numbers of image 0 of epoch 1.

    Args:
        seed: The run's seed, 0 to 2**32 - 1.
        place: Where in the run, such as (epoch, image index).
    """
    words = ",".join(map(str, (seed, int(purpose), *place)))
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=4).digest(), "little")


@contextmanager
def seeded_cpu_generator(seed: int) -> Iterator[None]:
    """Seed torch's global CPU generator, and give it back its state afterwards.

    torchvision's transforms draw from that generator and take no other.
    """
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


def seed_device_generators(seed: int, device: torch.device) -> None:
    """Seed the global CPU generator and, on a GPU, that of the device.

    `torch.manual_seed` would do it for every accelerator there is, at a cost in each step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
