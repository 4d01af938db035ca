"""PEFT's adapters against what PEFT itself computes with one, and files that are not what they say."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from helpers import model, replace
from test_lora import adapted

from llmstack.errors import BadInput
from llmstack.interop import peft, safetensors
from llmstack.model import Lora, combine, forward, unembed

# peft 0.21.2 on a random Llama of transformers 5.23: rank 4, alpha 8, rsLoRA, every matrix.
FOLDER = pathlib.Path(__file__).parent / 'golden' / 'peft_tiny'
GOLDEN = np.load(FOLDER.with_suffix('.npz'))
CFG = model('llama_tiny', width=16, heads=4, kv_heads=2, head_width=4, ff=24, length=32, tied=False)


def base():
  """Returns the golden Llama as our parameters: [out, in] there, [in, heads, width] here."""
  each = lambda name: np.stack([GOLDEN[f'layers.{i}.{name}.weight'] for i in range(CFG.layers)])  # noqa: E731
  w = {role: each(module).swapaxes(1, 2) for role, module in peft.MODULES.items()}
  shapes = {'wq': (16, 4, 4), 'wk': (16, 2, 4), 'wv': (16, 2, 4), 'wo': (4, 4, 16)}
  w = {role: {'w': x.reshape(-1, *shapes[role]) if role in shapes else x} for role, x in w.items()}
  return {
    'embed': {'w': GOLDEN['embed_tokens.weight']},
    'layers': {
      'attn_norm': {'scale': each('input_layernorm')},
      'attn': {role: w[role] for role in shapes},
      'mlp_norm': {'scale': each('post_attention_layernorm')},
      'mlp': {role: w[role] for role in ('w_gate', 'w_up', 'w_down')},
    },
    'final_norm': {'scale': GOLDEN['norm.weight']},
    'head': {'w': GOLDEN['lm_head.weight'].T},
  }


@jax.jit
def logits(params):
  ids = GOLDEN['ids']
  at = np.tile(np.arange(ids.shape[1], dtype=np.int32), (len(ids), 1))
  return unembed(CFG, params, forward(CFG, params, ids, at, at * 0 + 1)[0])


def test_an_adapter_of_peft_computes_what_it_does_there():
  """A matrix is transposed, heads and their width are swapped, rsLoRA is scaled by alpha / R."""
  lora, adapters = peft.load(FOLDER, CFG)
  assert lora == Lora(4, 8.0, True, tuple(peft.MODULES), 0.05) and lora.scale == 4
  out = logits(combine(base(), adapters, lora))
  np.testing.assert_allclose(out, GOLDEN['adapted_logits'], atol=1e-5)
  assert np.abs(logits(combine(base(), adapters, replace(lora, rs=False))) - out).max() > 0.1


def test_what_is_exported_is_what_peft_saved(tmp_path):
  """A name, a layout or the scale is changed on the way out; the golden folder comes back as it was."""
  lora, adapters = peft.load(FOLDER, CFG)
  peft.export(adapters, lora, CFG, tmp_path, 'a/base')
  ours, theirs = (safetensors.read(folder / 'adapter_model.safetensors') for folder in (tmp_path, FOLDER))
  assert ours.keys() == theirs.keys()
  for name, x in theirs.items():
    np.testing.assert_array_equal(ours[name], x)
  config, want = (json.loads((folder / 'adapter_config.json').read_text()) for folder in (tmp_path, FOLDER))
  assert sorted(config.pop('target_modules')) == sorted(want['target_modules'])
  assert config.pop('base_model_name_or_path') == 'a/base'
  assert config == {k: want[k] for k in config}
  some = Lora(2, 3.0, False, ('w_down', 'wk'), 0.0)
  peft.export(adapted(CFG, some), some, CFG, tmp_path, None)
  again, tree = peft.load(tmp_path, CFG)
  assert again == replace(some, targets=('wk', 'w_down'))
  jax.tree.map(np.testing.assert_array_equal, tree, adapted(CFG, some))


def change(folder, **values):
  path = folder / 'adapter_config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
  'values',
  [
    dict(use_dora=True), dict(bias='all'), dict(modules_to_save=['lm_head']), dict(rank_pattern={'q_proj': 8}),
    dict(init_lora_weights='pissa'), dict(layers_to_transform=[0]), dict(peft_type='IA3'), dict(some_new_option=0.5),
  ],
)  # fmt: skip
def test_what_an_adapter_does_besides_is_refused(values, tmp_path):
  """An option that changes the function (DoRA, PiSSA's other base, patterns) is dropped, and the logits are wrong."""
  shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
  change(tmp_path, **values)
  with pytest.raises(BadInput, match=f'sets {next(iter(values))} = .* which is not implemented here'):
    peft.load(tmp_path, CFG)


def test_an_adapter_for_another_base_is_refused(tmp_path):
  """It is reshaped, or its later layers are left out: the leaf and both shapes are named."""
  for changes, message in (
    (dict(width=32), r'k_proj.lora_A.weight is \(4, 16\) and this base needs \(4, 32\)'),
    (dict(kv_heads=4), r'k_proj.lora_B.weight is \(8, 4\) and this base needs \(16, 4\)'),
    (dict(layers=1), 'adapts layer 1 and this model has 1'),
    (dict(layers=3), r'has no base_model.model.model.layers.2'),
  ):
    with pytest.raises(BadInput, match=message):
      peft.load(FOLDER, replace(CFG, **changes))
  shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
  for name in ('base_model.model.lm_head.lora_A.weight', 'base_model.model.model.layers.0.mlp.fc1.lora_A.weight'):
    safetensors.write(tmp_path / 'adapter_model.safetensors', {name: np.zeros((4, 16), 'f4')}, {})
    with pytest.raises(BadInput, match=f'holds {name}, which has no adapter here'):
      peft.load(tmp_path, CFG)
  (tmp_path / 'adapter_model.safetensors').unlink()
  with pytest.raises(BadInput, match='adapter_model.bin is a pickle, which is never loaded'):
    peft.load(tmp_path, CFG)
  with pytest.raises(BadInput, match='names the matrices of a Llama'):
    peft.export({}, None, model('gpt2_tiny'), tmp_path, None)


def test_safetensors_come_back(tmp_path):
  """An empty array, a scalar, an unaligned or a big-endian one; bfloat16 is read by its bits."""
  r = np.random.RandomState(0)
  arrays = {
    'b': r.randn(3, 5).astype('>f4'), 'a': np.array([True, False, True]), 'empty': np.zeros((0, 4), 'f8'),
    'half': r.randn(7).astype('f2'), 'scalar': np.int64(-3)[...], 'turned': r.randn(4, 6).astype('f4').T,
  }  # fmt: skip
  safetensors.write(tmp_path / 'x', arrays, {'format': 'pt'})
  back = safetensors.read(tmp_path / 'x')
  assert back.keys() == arrays.keys()
  for name, x in arrays.items():
    np.testing.assert_array_equal(back[name], x)
    assert back[name].dtype == x.dtype.newbyteorder('<')
  header = json.dumps({'x': {'dtype': 'BF16', 'shape': [2], 'data_offsets': [0, 4]}}).encode()
  (tmp_path / 'bf16').write_bytes(len(header).to_bytes(8, 'little') + header + bytes([0xC0, 0x3F, 0x00, 0xC0]))
  np.testing.assert_array_equal(safetensors.read(tmp_path / 'bf16')['x'], np.float32([1.5, -2.0]))


def entry(dtype='F32', shape=(2,), begin=0, end=8):
  return {'dtype': dtype, 'shape': shape, 'data_offsets': [begin, end]}


@pytest.mark.parametrize(
  'header, message',
  [
    ({'x': entry(end=12)}, 'x should be 8 bytes from byte 0 of 16'),
    ({'x': entry(), 'y': entry()}, 'y should be 8 bytes from byte 8 of 16, and the header says 0 to 8'),
    ({'x': entry(), 'y': entry(begin=12, end=20)}, 'y should be 8 bytes from byte 8'),
    ({'x': entry(), 'y': entry(shape=(3,), begin=8, end=20)}, 'damaged or cut: y should be 12 bytes'),
    ({'x': entry()}, '8 bytes follow the last array'),
    ({'x': entry(shape=(-2,))}, r'x has shape \(-2,\)'),
    ({'x': entry(dtype='F8_E4M3')}, 'stores x as F8_E4M3'),
    ({'x': {'dtype': 'F32'}}, 'not a JSON object of arrays'),
    ([1], 'not a JSON object of arrays'),
    ('{"x": 1, "x": 2}', 'names an array or a field twice'),
  ],
)
def test_a_damaged_file_is_refused(header, message, tmp_path):
  """A header's offsets are believed: arrays overlap, are read past the end, or hide bytes between them."""
  head = (header if isinstance(header, str) else json.dumps(header)).encode()
  (tmp_path / 'x').write_bytes(len(head).to_bytes(8, 'little') + head + bytes(16))
  with pytest.raises(BadInput, match=message):
    safetensors.read(tmp_path / 'x')


def test_a_file_cut_anywhere_is_refused(tmp_path):
  """Half a download is loaded."""
  whole = (FOLDER / 'adapter_model.safetensors').read_bytes()
  for n in (0, 5, 8, 100, len(whole) // 2, len(whole) - 1):
    (tmp_path / 'x').write_bytes(whole[:n])
    with pytest.raises(BadInput, match='cut'):
      safetensors.read(tmp_path / 'x')
  (tmp_path / 'x').write_bytes(b'\xff' * 64)
  with pytest.raises(BadInput, match='no safetensors file'):
    safetensors.read(tmp_path / 'x')
