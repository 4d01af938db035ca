"""Two layers of a Llama of 8B widths, compiled for a slice of TPUs that nobody has here. Needs no TPU.

    make aot
    make aot ARGS='--config.topology=v5e:16x16 --config.mesh.fsdp=32 --config.mesh.tensor=8 --config.train.batch=256'

Another model of configs/sizes.py: `--config configs/aot.py:llama_1b`. Measured on two CPU cores: the training step
compiles in 60 s for v5e:4x4 and needs 6.5 GiB of a device's 16, the decode step in 5 s and 0.9 GiB; for the 256
devices of v5e:16x16, 37 s and 5 s.
"""

from ml_collections import ConfigDict

from configs import sizes


def get_config(size='llama_8b'):
  c = ConfigDict()
  c.task = 'aot'
  c.topology = 'v5e:4x4'  # version:shape, as libtpu names slices: v5e:16x16, v4:2x2x4, v5p:2x2x4, v6e:4x4
  c.model = sizes.model(size)
  c.model.vocab = 128_256
  c.model.layers = 2  # enough to see every collective of a layer
  c.model.dtype = 'bfloat16'
  c.model.attention = 'splash'
  c.model.scan = True
  c.model.remat = 'dots'
  c.mesh = sizes.mesh()  # of the training step
  c.mesh.fsdp = 4
  c.mesh.tensor = 4

  c.train = ConfigDict()
  c.train.batch = 16  # rows, all devices together
  c.train.length = 4096  # tokens
  c.train.microbatches = 1
  c.train.loss_chunk = 2048  # positions of logits alive at once, divides length
  c.train.optim = 'adamw'  # adamw | lion | muon | adafactor

  c.decode = ConfigDict()
  c.decode.batch = 32  # rows, all devices together
  c.decode.length = 4096  # cache, tokens
  c.decode.tensor = 8  # splits heads, feed-forward and vocabulary; the other devices split the batch
  return c
