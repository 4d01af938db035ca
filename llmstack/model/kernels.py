"""Attention of packed rows by compiled kernels of others: XLA's, cuDNN's on a GPU, Pallas splash on a TPU.

    kernel(q, k, v, positions, segments, *, window, softcap) -> dtype[B,T,N,H]

q: dtype[B,T,N,H]; k, v: dtype[B,T,K,H]; positions, segments: int32[B,T] of packed rows, each segment a run of
columns, so that the past is what lies to the left. window: tokens a query sees, itself included; T or more is
all. softcap: float or None. What comes out at padding (segment 0) differs between kernels and is of no use.

Kernels of `AHEAD` also take k, v, positions and segments of S > T columns, of which the last T are the queries' own:
what stands ahead of them is seen by its position. `shared_prompts` lives on it.

They run without a cache only, and not for every model on every device: `check` says so before anything starts.
"""

import jax
import jax.numpy as jnp

from llmstack.errors import BadInput
from llmstack.sharding import MESH_AXES, spec

AHEAD = ('einsum', 'blocks', 'xla')
LANES = 128  # a TPU register is 8 x 128: splash works on blocks of queries and keys of at least so many


def visible(query_pos, key_pos, window):
  """Returns bool[B,T,S]: keys at or before the query and less than `window` behind it; key_pos -1 never."""
  distance = query_pos[:, :, None] - key_pos[:, None, :]
  return (distance >= 0) & (distance < window) & (key_pos >= 0)[:, None, :]


def seen(positions, segments, queries, window):
  """Returns bool[B,T,S]: what the last T = `queries` of S columns see of their own segments, by position."""
  same = segments[:, -queries:, None] == segments[:, None, :]
  return same & visible(positions[:, -queries:], positions, window)


def near(segments, window):
  """Returns bool[B,1,T,T]: keys of the query's own segment, less than `window` columns to the left, or at it."""
  at = jnp.arange(segments.shape[1])
  distance = at[:, None] - at[None, :]
  same = segments[:, :, None] == segments[:, None, :]
  return (same & ((distance >= 0) & (distance < window))[None])[:, None]


def xla(q, k, v, positions, segments, *, window, softcap):
  """jax.nn.dot_product_attention as XLA compiles it: the reference by another hand, no faster by itself."""
  assert softcap is None, 'check() refuses this'
  mask = seen(positions, segments, q.shape[1], window)[:, None]
  return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation='xla')


def cudnn(q, k, v, positions, segments, *, window, softcap):
  """cuDNN's flash attention. Never holds the scores, but reads its mask of segments and window as dtype[B,1,T,T]."""
  assert softcap is None, 'check() refuses this'

  def shard(q, k, v, segments):
    # is_causal: blocks above the diagonal are skipped; below it the mask decides.
    return jax.nn.dot_product_attention(q, k, v, mask=near(segments, window), is_causal=True, implementation='cudnn')

  return per_shard(shard, q, k, v, segments)


def splash(q, k, v, positions, segments, *, window, softcap):
  """Pallas splash attention. Skips blocks above the diagonal and outside the window. T: a multiple of 128.

  Off a TPU the same kernel is interpreted: right, and so slow that check() allows it to nobody but tests.
  """
  from jax.experimental.pallas.ops.tpu import splash_attention as lib

  T, H = q.shape[1], q.shape[3]
  side = next(n for n in (512, 256, LANES) if T % n == 0)
  names = ('q', 'kv', 'kv_compute', 'q_dkv', 'kv_dkv', 'kv_dkv_compute', 'q_dq', 'kv_dq')
  sides = lib.BlockSizes(**{f'block_{name}': side for name in names})
  mask = lib.CausalMask((T, T)) if window >= T else lib.LocalMask((T, T), (window - 1, 0), 0)
  device = jax.sharding.get_abstract_mesh().abstract_device
  platform = device.platform if device else jax.default_backend()

  def shard(q, k, v, segments):
    kernel = lib.make_splash_mha(
      lib.MultiHeadMask([mask] * q.shape[2]), block_sizes=sides, head_shards=1, q_seq_shards=1,
      attn_logits_soft_cap=softcap, interpret=platform != 'tpu',
    )  # fmt: skip
    row = lambda q, k, v, s: kernel(q, k, v, lib.SegmentIds(s, s))  # noqa: E731
    q, k, v = (x.swapaxes(1, 2) for x in (q * H**-0.5, k, v))  # splash does not scale
    return jax.vmap(row)(q, k, v, segments).swapaxes(1, 2)

  return per_shard(shard, q, k, v, segments)


def per_shard(kernel, q, k, v, segments):
  """Returns kernel(q, k, v, segments), on a mesh called by each device with its own rows and heads."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.axis_names != MESH_AXES:
    return kernel(q, k, v, segments)
  specs = [spec(letters) for letters in ('BTNH', 'BTKH', 'BTKH', 'BT')]
  return jax.shard_map(kernel, in_specs=tuple(specs), out_specs=specs[0], check_vma=False)(q, k, v, segments)


def check(cfg, mesh, length, shared=None):
  """Returns nothing; raises BadInput where cfg.attention cannot run this model, in rows of `length`, on this mesh.

  shared: columns of prompts that two completions share, or None.
  """
  name, device = cfg.attention, mesh.devices.flat[0]
  how, kind = f'model.attention = {name!r}', device.device_kind
  if shared is not None and name not in AHEAD:
    raise BadInput(
      f'{how} computes no prompt that two completions share and data.prompt = {shared}: '
      f'set data.prompt to None, or use one of {", ".join(AHEAD)}'
    )
  if shared is not None and mesh.shape['context'] > 1:
    raise BadInput(
      f'mesh.context = {mesh.shape["context"]} cuts rows up and data.prompt = {shared} shares their prompts: '
      'set data.prompt to None, or mesh.context to 1'
    )
  if name in ('xla', 'cudnn') and cfg.attn_softcap is not None:
    raise BadInput(f'{how} has no soft-cap and model.attn_softcap = {cfg.attn_softcap}: use einsum, or splash on a TPU')
  if name in ('cudnn', 'splash') and mesh.shape['context'] > 1:
    raise BadInput(f'{how} needs whole rows and mesh.context = {mesh.shape["context"]}: use einsum, or context = 1')
  if name == 'splash':
    if device.platform != 'tpu':
      raise BadInput(f'{how} runs on TPUs and this is a {kind}: use einsum, or cudnn on a GPU')
    if length % LANES:
      raise BadInput(f'{how} needs data.length = {length} to be a multiple of {LANES}: change it, or use einsum')
  if name == 'cudnn':
    version = float(device.compute_capability) if 'NVIDIA' in kind else 0.0
    if version < 8.0:
      raise BadInput(f'{how} needs an NVIDIA GPU of compute capability 8.0 or more and this is a {kind}: use einsum')
    if cfg.dtype != 'bfloat16':
      raise BadInput(f'{how} computes in bfloat16 and model.dtype = {cfg.dtype!r}: change one of them')
    widest = 256 if version >= 9.0 else 128
    if cfg.head_width % 8 or cfg.head_width > widest or length % 2:
      raise BadInput(
        f'{how} needs model.head_width = {cfg.head_width} to be a multiple of 8 up to {widest} '
        f'and data.length = {length} to be even: change them, or use einsum'
      )
