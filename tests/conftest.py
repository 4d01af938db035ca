"""CPU, eight emulated devices in one process, rank promotion raises; pyproject.toml makes warnings errors."""

import os
import tempfile

import jax
import pytest

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)  # before the backend starts; later it is an error
jax.config.update('jax_numpy_rank_promotion', 'raise')
# Compiling is most of the suite's time, and half of that is optimising programs that run once. The runs that are
# killed, the demo and the experiments are compiled as users' are.
jax.config.update('jax_disable_most_optimizations', True)
# And many tests run the same small model: each worker compiles a program of more than a moment once.
COMPILED = tempfile.TemporaryDirectory()
jax.config.update('jax_compilation_cache_dir', os.path.join(COMPILED.name, 'compiled'))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)

from llmstack import sharding  # noqa: E402

MESHES = {'one': None, '8x1x1': (8, 1, 1), '2x4x1': (2, 4, 1), '2x2x2': (2, 2, 2), '1x1x8': (1, 1, 8)}


@pytest.fixture(params=MESHES)
def mesh(request):
  """One device, then (data, fsdp, tensor) over eight."""
  if MESHES[request.param] is None:
    return sharding.make_mesh(devices=jax.devices()[:1])
  data, fsdp, tensor = MESHES[request.param]
  return sharding.make_mesh(data=data, fsdp=fsdp, tensor=tensor)


def pytest_configure():
  assert jax.device_count() == 8, 'the suite needs eight emulated devices'
