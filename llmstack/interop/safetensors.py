"""Files of named arrays: the safetensors format, without the package.

Source: its specification (huggingface/safetensors, README): eight bytes of header length, little-endian; a JSON header
{name: {dtype, shape, data_offsets}}, offsets counted from its end; then the arrays, without gaps or overlaps.
"""

import json
import math
import os

import numpy as np

from llmstack.errors import BadInput

DTYPES = {
  'F64': '<f8', 'F32': '<f4', 'F16': '<f2', 'BF16': '<u2', 'I64': '<i8', 'I32': '<i4', 'I16': '<i2', 'I8': '|i1',
  'U64': '<u8', 'U32': '<u4', 'U16': '<u2', 'U8': '|u1', 'BOOL': '|b1',
}  # fmt: skip
NAMES = {np.dtype(v): k for k, v in DTYPES.items() if k != 'BF16'}
LONGEST = 100_000_000  # bytes of header, as in the reference implementation


def read(path):
  """Returns {name: array} of a file, read-only, in the dtypes stored; bfloat16 becomes float32.

  Raises: BadInput for a file that is cut, whose header is no header, or whose arrays overlap or leave gaps.
  """
  with open(path, 'rb') as f:
    start = f.read(8)
    length = int.from_bytes(start, 'little')
    head = f.read(min(length, LONGEST + 1))
    if len(start) < 8 or len(head) != length or length > LONGEST:
      raise BadInput(f'{path} is no safetensors file, or cut: its header should have {length} bytes')
    body = f.read()
  try:
    header = json.loads(head, object_pairs_hook=lambda pairs: once(path, pairs))
    fields = [
      (name, x['dtype'], tuple(x['shape']), *x['data_offsets']) for name, x in header.items() if name != '__metadata__'
    ]
    fields.sort(key=lambda field: field[3:])
  except (UnicodeDecodeError, json.JSONDecodeError, AttributeError, KeyError, TypeError) as e:
    raise BadInput(f'{path} is no safetensors file: its header is not a JSON object of arrays ({e!r})') from e
  at, out = 0, {}
  for name, dtype, shape, begin, end in fields:
    if dtype not in DTYPES:
      raise BadInput(f'{path} stores {name} as {dtype}, which is not read here: convert it to float32 or bfloat16')
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end)):
      raise BadInput(f'{path} is damaged: {name} has shape {shape} and bytes {begin} to {end}')
    size = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
    if begin != at or end - begin != size or end > len(body):
      raise BadInput(
        f'{path} is damaged or cut: {name} should be {size} bytes from byte {at} of {len(body)}, and the header says '
        f'{begin} to {end}'
      )
    at = end
    x = np.frombuffer(body, DTYPES[dtype], math.prod(shape), begin).reshape(shape)
    out[name] = (x.astype(np.uint32) << 16).view(np.float32) if dtype == 'BF16' else x
  if at != len(body):
    raise BadInput(f'{path} is damaged: {len(body) - at} bytes follow the last array')
  return out


def once(path, pairs):
  """Returns a dict of the pairs; raises BadInput where a key comes twice."""
  out = dict(pairs)
  if len(out) < len(pairs):
    raise BadInput(f'{path} is damaged: its header names an array or a field twice')
  return out


def write(path, arrays, metadata):
  """Writes {name: array}, whole or not at all. metadata: {str: str}."""
  header, at = {'__metadata__': metadata} if metadata else {}, 0
  arrays = {name: np.ascontiguousarray(x, x.dtype.newbyteorder('<')) for name, x in sorted(arrays.items())}
  # Wider dtypes first, so that every array begins at a multiple of its item size.
  arrays = dict(sorted(arrays.items(), key=lambda item: -item[1].itemsize))
  for name, x in arrays.items():
    header[name] = {'dtype': NAMES[x.dtype], 'shape': list(x.shape), 'data_offsets': [at, at + x.nbytes]}
    at += x.nbytes
  head = json.dumps(header, separators=(',', ':')).encode()
  head += b' ' * (-len(head) % 8)
  with open(f'{path}.part', 'wb') as f:
    f.write(len(head).to_bytes(8, 'little') + head)
    for x in arrays.values():
      f.write(x.tobytes())
  os.replace(f'{path}.part', path)
