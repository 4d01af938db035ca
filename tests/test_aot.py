"""Programs compiled for TPUs that are not here: what the table says about them."""

import importlib.util
import os

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from llmstack import sharding
from llmstack.errors import BadInput
from llmstack.main import load
from llmstack.plan import aot
from llmstack.tasks import aot as task


def test_collectives_of_a_compiled_program_are_counted():
  """A collective in a loop counts once, bytes are those of one side only, or of all devices together."""
  mesh = jax.make_mesh((8,), ('x',), (jax.sharding.AxisType.Auto,))

  def shard(x):
    def body(carry, _):
      return carry + jax.lax.psum(carry * 2, 'x'), None

    y = jax.lax.scan(body, x, length=5)[0]
    return jax.lax.all_gather(y, 'x', tiled=True), jax.lax.psum_scatter(jnp.tile(y, (8, 1)), 'x', tiled=True)

  x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=NamedSharding(mesh, P('x')))
  program = jax.jit(jax.shard_map(shard, mesh=mesh, in_specs=P('x'), out_specs=(P(), P('x')), check_vma=False))
  program = program.lower(x).compile()
  one = 8 * 32 * 4
  got = aot.collectives(program.as_text())
  assert got == {'all-gather': (1, 8 * one), 'all-reduce': (5, 5 * one), 'reduce-scatter': (1, 8 * one)}
  assert aot.held(x) == one == aot.Memory.of(program).arguments


def test_collectives_as_a_tpu_spells_them():
  """One collective spread over two fusions counts twice, a loop without a noted trip count once, an asynchronous
  permute both its buffers, or a reduce-scatter passes for an all-reduce."""
  hlo = """HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x.1 = f32[]{:T(128)} parameter(0)
  %y.1 = f32[]{:T(128)} parameter(1)
  ROOT %add.1 = f32[]{:T(128)} add(%x.1, %y.1)
}

%all-reduce-scatter.1 (input.1: f32[1024,8]) -> f32[256,8] {
  %input.1 = f32[1024,8]{1,0:T(8,128)} parameter(0)
  %all-reduce.9 = f32[1024,8]{1,0:T(8,128)} all-reduce(%input.1), channel_id=3, to_apply=%add
  ROOT %dynamic-slice.1 = f32[256,8]{1,0:T(8,128)} dynamic-slice(%all-reduce.9, %c, %c)
}

%fused_a (p: bf16[4,128]) -> bf16[16,128] {
  %p = bf16[4,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[16,128]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, dimensions={0}
}

%fused_b (p: bf16[4,128]) -> bf16[16,128] {
  %p.1 = bf16[4,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[16,128]{1,0:T(8,128)(2,1)} all-gather(%p.1), channel_id=7, dimensions={0}
}

%body (w: (s32[], bf16[4,128])) -> (s32[], bf16[4,128]) {
  %w = (s32[]{:T(128)}, /*index=1*/bf16[4,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = bf16[4,128]{1,0:T(8,128)(2,1)} get-tuple-element(%w), index=1
  %f1 = bf16[16,128]{1,0} fusion(%x), kind=kCustom, calls=%fused_a
  %f2 = bf16[16,128]{1,0} fusion(%x), kind=kCustom, calls=%fused_b
  %s = (bf16[4,128]{1,0:T(8,128)(2,1)}, bf16[4,128]{1,0}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=5
  ROOT %t = (s32[]{:T(128)}, bf16[4,128]{1,0}) tuple(%i, %x)
}

%condition (w: (s32[], bf16[4,128])) -> pred[] {
  %constant.4 = s32[]{:T(128)} constant(6)
  %w.1 = (s32[]{:T(128)}, bf16[4,128]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%w.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %constant.4), direction=LT
}

ENTRY %main (a: f32[1024,8]) -> f32[256,8] {
  %a = f32[1024,8]{1,0:T(8,128)} parameter(0)
  %while.1 = (s32[]{:T(128)}, bf16[4,128]{1,0}) while(%tuple.1), condition=%condition, body=%body
  ROOT %fusion = f32[256,8]{1,0:T(8,128)} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
}
"""
  assert aot.collectives(hlo) == {
    'all-gather': (6, 6 * 16 * 128 * 2),
    'reduce-scatter': (1, 1024 * 8 * 4),
    'collective-permute': (6, 6 * 4 * 128 * 2),
  }


def test_without_the_tpu_compiler_the_install_command_is_printed(monkeypatch, tmp_path):
  """The foreign error ('JAX TPU support not installed') names no package and no version."""
  monkeypatch.delenv('TPU_LIBRARY_PATH', raising=False)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(BadInput, match=r"make aot.* pip install --no-deps 'libtpu==0\.0\.\d+"):
    task.run(load('configs/aot.py'), str(tmp_path))


@pytest.mark.parametrize('program', ['train', 'decode'])
def test_both_programs_run(program):
  """What is compiled for a TPU is not what runs: its arguments do not fit the real step. Here on emulated devices."""
  from llmstack.model import ModelConfig

  config = load('configs/aot.py:llama_tiny')
  config.train.update({'batch': 8, 'length': 32, 'loss_chunk': 16})
  config.decode.update({'batch': 8, 'length': 32, 'tensor': 2})
  config.model.update({'vocab': 64, 'attention': 'einsum', 'dtype': 'float32'})
  mesh = sharding.make_mesh(fsdp=2, tensor=2)
  make = {'train': task.train_step, 'decode': task.decode_step}[program]
  with jax.set_mesh(mesh):
    step, args, flops = make(config, ModelConfig(**config.model.to_dict()), mesh)
    zeros = jax.jit(lambda: jax.tree.map(_zeros, args), out_shardings=jax.tree.map(lambda x: x.sharding, args))()
    out = step(*zeros)[0]
  assert flops > 0
  same = jax.tree.map(lambda a, b: a.shape == b.shape and a.sharding == b.sharding, out, args[program == 'decode'])
  assert all(jax.tree.leaves(same))


def _zeros(x):
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    return jax.vmap(jax.random.key)(jnp.zeros(x.shape, jnp.uint32))
  return jnp.zeros(x.shape, x.dtype)


@pytest.mark.slow
@pytest.mark.skipif('TPU_LIBRARY_PATH' not in os.environ, reason='needs the TPU compiler: see `make aot`')
def test_a_small_model_is_compiled_for_a_tpu(tmp_path, capsys):
  """The TPU compiler refuses the step or the kernel, which no other test would notice."""
  config = load('configs/aot.py:llama_tiny')
  config.update({'topology': 'v5e:2x2', 'model': {'head_width': 64}})
  config.update({'mesh': {'fsdp': 2, 'tensor': 2}, 'decode': {'tensor': 2}})
  config.train.update({'batch': 4, 'length': 256, 'loss_chunk': 128})
  task.run(config, str(tmp_path))
  out = capsys.readouterr().out
  assert 'train: 4 rows' in out and 'all-reduce' in out and 'GiB' in out
