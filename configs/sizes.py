"""Shapes of models, in one table, and of a mesh. Everything else about an experiment stands in its own file."""

from ml_collections import ConfigDict, config_dict

from llmstack.errors import BadInput


def _model(**sizes):
  """Returns a complete model config: a Llama, with the given values changed."""
  c = ConfigDict()
  c.vocab = config_dict.placeholder(int)  # entries; None takes the tokenizer's size
  c.layers = 4  # blocks
  c.width = 128  # D
  c.heads = 4  # query heads, divisible by kv_heads and by mesh.tensor
  c.kv_heads = 4
  c.head_width = 32  # even under RoPE
  c.ff = 344  # feed-forward width
  c.length = 256  # longest sequence, tokens
  c.norm = 'rms'  # rms | layer
  c.norm_eps = 1e-5
  c.post_norm = False  # also norm each branch's output
  c.act = 'silu'  # silu | gelu
  c.gated = True  # act(gate) * up
  c.bias = False  # on matmuls and LayerNorm
  c.positions = 'rope'  # rope | learned
  c.rope_theta = 10_000.0
  c.qk_norm = False
  c.attn_softcap = config_dict.placeholder(float)  # None for none
  c.logit_softcap = config_dict.placeholder(float)
  c.windows = ()  # tokens, cycled over layers; 0 sees everything
  c.tied = True  # output head = embedding
  c.scale_embed = False  # embeddings times sqrt(width)
  c.dropout = 0.0
  c.init_std = 0.02
  c.dtype = 'float32'  # compute: float32 | bfloat16
  c.attention = 'blocks'  # blocks | einsum | xla | cudnn (GPU, bfloat16) | splash (TPU)
  c.scan = False  # one compiled layer instead of `layers`: compiles faster, runs slower on a CPU
  c.remat = 'none'  # none | dots | full
  c.update(sizes)
  return c


GPT2 = dict(norm='layer', act='gelu', gated=False, bias=True, positions='learned', tied=True)
GEMMA = dict(
  act='gelu', qk_norm=True, post_norm=True, logit_softcap=30.0, attn_softcap=50.0, scale_embed=True, tied=True,
  norm_eps=1e-6,
)  # fmt: skip
TPU = dict(dtype='bfloat16', scan=True, remat='dots')

MODELS = {
  'llama_tiny': dict(layers=2, width=32, heads=4, kv_heads=2, head_width=8, ff=64, length=64),
  'gpt2_tiny': dict(GPT2, layers=2, width=32, heads=4, kv_heads=4, head_width=8, ff=128, length=64),
  'gemma_tiny': dict(GEMMA, layers=3, width=32, heads=4, kv_heads=1, head_width=8, ff=64, length=64, windows=(8, 8, 0)),
  'nanogpt_cpu': dict(GPT2 | {'bias': False}, layers=4, width=128, heads=4, kv_heads=4, head_width=32, ff=512, length=64),
  'llama_demo': dict(layers=3, width=128, heads=4, kv_heads=2, head_width=32, ff=344, length=128),
  'llama_1m': dict(layers=4, width=128, heads=4, kv_heads=2, head_width=32, ff=344, length=256),
  'gpt2_124m': dict(GPT2 | TPU, layers=12, width=768, heads=12, kv_heads=12, head_width=64, ff=3072, length=1024),
  'llama_1b': dict(TPU, layers=16, width=2048, heads=32, kv_heads=8, head_width=64, ff=8192, length=4096, rope_theta=5e5),
  'llama_8b': dict(TPU, layers=32, width=4096, heads=32, kv_heads=8, head_width=128, ff=14336, length=8192, rope_theta=5e5, tied=False),
  'gemma2_2b': dict(GEMMA | TPU | {'qk_norm': False}, layers=26, width=2304, heads=8, kv_heads=4, head_width=256, ff=9216, length=8192, windows=(4096, 0)),
}  # fmt: skip


def model(name):
  """Returns the complete model config of that name."""
  if name not in MODELS:
    raise BadInput(f'configs/sizes.py knows no model {name!r}: choose one of {", ".join(MODELS)}')
  return _model(**MODELS[name])


def mesh():
  """Returns a mesh that gives all devices to the batch."""
  c = ConfigDict()
  c.data = config_dict.placeholder(int)  # None takes the devices that are left
  c.fsdp = 1  # also splits parameters and optimiser
  c.tensor = 1  # splits heads, feed-forward and vocabulary
  c.context = 1  # splits positions
  c.expert = 1
  return c
