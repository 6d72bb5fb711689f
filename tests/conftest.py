"""Settings and fixtures of every test.

Four host CPU devices, so that sharding is exercised on any machine; a silent rank
promotion is an error (a mask broadcast against the wrong axis would otherwise pass);
warnings are errors (pyproject.toml).

Python's garbage collector would walk every traced program again and again; it is told
to look less often, and never at what the imports made.

The suite spends its time compiling programs that run once, so XLA is told to compile
quickly: the same graph passes, plain code, in one piece. `XLA_FLAGS= pytest` compiles
as users do.
"""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    "--xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1",
)

os.environ["KERAS_BACKEND"] = "jax"  # Keras reads it once, when it is imported

import jax  # noqa: E402
import pytest  # noqa: E402

from jprune.surgery.rules import strict  # noqa: E402

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_finish() -> None:
    """The collector's settings, see above: about a tenth of the suite's time."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@pytest.fixture(scope="session", autouse=True)
def _strict_rules() -> Iterator[None]:
    """What a rule of surgery raises is raised, not taken for an unknown form."""
    with strict():
        yield


@pytest.fixture
def getkey() -> Callable[[], jax.Array]:
    """A function that returns a fresh PRNG key at each call, the same in every run."""
    keys = iter(range(1 << 20))
    return lambda: jax.random.fold_in(jax.random.key(5678), next(keys))


@pytest.fixture
def strict_promotion() -> Iterator[None]:
    """Implicit dtype promotion is an error within the test.

    Not set for all tests: several Optax schedules and Flax layers promote on purpose.
    """
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def broadcasting() -> Iterator[None]:
    """Ranks are promoted, as where users and frameworks write the program."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def double(broadcasting: None) -> Iterator[None]:
    """Float64, for comparisons to rounding."""
    del broadcasting
    with jax.enable_x64(True):
        yield


@pytest.fixture
def data_dir() -> Path:
    """The folder named by TFDS_DATA_DIR; the `data` marker skips where it is absent."""
    return Path(os.environ["TFDS_DATA_DIR"])


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test marked `data` where the data sets are not."""
    if item.get_closest_marker("data") is None:
        return
    folder = os.environ.get("TFDS_DATA_DIR")
    if not folder or not Path(folder).is_dir():
        pytest.skip(f"needs the data sets: TFDS_DATA_DIR={folder!r} is not a folder")
