"""Raw text to shards: read, clean, filter, deduplicate, decontaminate, mix, tokenise, pack, and a report of it all.

    llmstack --config configs/world.py --workdir runs/world-text
    llmstack --config configs/world.py --workdir runs/world-labelled --config.seed=1 --config.documents=5_000
    llmstack --config configs/classify.py:spam --workdir runs/world-spam
    llmstack --config configs/prepare.py:world --workdir runs/world-prepared
    LLMSTACK_DATA=DIR llmstack --config configs/prepare.py:shared --workdir runs/shared-prepared

`raw` is `shared` with everything switched off that removes or changes text: what an ablation compares with.

Needs `pip install -e .[data]`. Train on it with configs/pretrain.py:prepared. Measured: experiments/008-prepare.
"""

import os
import sysconfig

from ml_collections import ConfigDict, config_dict

from llmstack.data.world import TOXIC_WORDS
from llmstack.errors import BadInput

NONE, MANY = float('-inf'), float('inf')


def source(*files, text='text', id='', split_on='', holdout=0.01, holdout_by='document', synthetic=False):
  c = ConfigDict()
  c.files = files  # paths, globs, gs://, s3://, hf://datasets/...
  c.text = text  # field of records, or a template of fields: '{question}\n{answer}'
  c.id = id  # field with an id of its own; '' = the place in the file
  c.split_on = split_on  # between documents of a plain text file; '' = one document
  c.max_bytes = 64 << 20  # of a record; longer ones are skipped and counted
  c.holdout = holdout  # share that is never trained on
  c.holdout_by = holdout_by  # document | tail (the end of every document)
  c.synthetic = synthetic  # written by a model
  return c


def get_config(size='world'):
  if size not in ('world', 'shared', 'raw'):
    raise BadInput(f'configs/prepare.py knows no size {size!r}: choose world, shared or raw')
  data, world, raw = os.environ.get('LLMSTACK_DATA', 'data'), size == 'world', size == 'raw'
  c = ConfigDict()
  c.task = 'prepare'
  c.seed = 0  # of MinHash, of samples
  c.runner = 'native'  # native | ray
  c.workers = os.cpu_count()  # processes

  c.sources = ConfigDict()
  if world:
    c.sources.world = source('runs/world-text/documents.jsonl', id='id')
  else:
    c.sources.books = source(f'{data}/books/*.jsonl.zst', id='id', holdout_by='tail')
    c.sources.docs = source(f'{data}/docs/*.jsonl.zst', id='id')
    c.sources.stories = source(f'{data}/text/tinystories_train_sample.txt.gz', f'{data}/text/tinystories_val.jsonl.gz')
    c.sources.text = source(
      f'{data}/text/tinyshakespeare.txt', f'{data}/text/wikitext2_valid.txt.gz', holdout_by='tail'
    )
    c.sources.web = source(f'{data}/warc/*.warc', f'{data}/warc/*.warc.gz', f'{data}/warc/*.wet.gz', holdout=0.0)
    c.sources.code = source(
      f'{sysconfig.get_paths()["stdlib"]}/*.py', f'{sysconfig.get_paths()["stdlib"]}/[a-r]*/**/*.py'
    )

  c.clean = ConfigDict()
  c.clean.repair = not raw  # mojibake, control characters, newlines
  c.clean.line_words = 0  # fewest words of a line without punctuation at its end; 0 = keep them all
  c.clean.drop_policy = world  # lines about cookies, JavaScript, terms of use
  c.clean.common_lines = 0  # lines that occur more often in the corpus go; 0 = off
  c.clean.common_characters = 30  # shorter lines are not counted
  c.clean.repeated = 0  # words; a run of so many that the corpus had before is cut, 50 is usual; 0 = off
  c.clean.mask = not raw  # e-mail and IP addresses, phone numbers, keys

  c.filter = ConfigDict()
  c.filter.languages = ()  # codes to keep, for example ('en',); () = all
  c.filter.bad_words = tuple(TOXIC_WORDS) if world else ()
  spam = 'runs/world-spam/classifier.npz' if world else ''
  c.filter.classifiers = ConfigDict(dict(quality='', spam=spam, toxicity=''))  # of configs/classify.py; '' = none
  if world:
    # Its documents have 100 to 900 characters: Gopher's limits on length and lists are not for them.
    c.filter.rules = dict(words=(8, MANY), bad_words=(NONE, 0), spam=(NONE, 0.5))
  elif raw:
    c.filter.rules = {}
  else:
    # Books, specifications, code: Gopher's limits, but for those on lines, words and symbols, which code breaks.
    c.filter.rules = dict(
      words=(20, MANY), word_length=(3, 12), ellipses=(NONE, 0.3), alphabetic=(0.5, MANY), duplicate_lines=(NONE, 0.5),
      duplicate_paragraphs=(NONE, 0.5), top_2gram=(NONE, 0.20), top_3gram=(NONE, 0.18), top_4gram=(NONE, 0.16),
      duplicate_5grams=(NONE, 0.5), duplicate_10grams=(NONE, 0.4), leaked=(NONE, 0.5),
    )  # fmt: skip

  c.dedup = ConfigDict()
  c.dedup.exact = not raw
  c.dedup.near = not raw
  c.dedup.hashes = 256 if world else 128  # of MinHash
  c.dedup.ngram = 2 if world else 5  # words
  c.dedup.threshold = 0.45 if world else 0.8  # Jaccard similarity that must be found; bands and rows follow
  c.dedup.confirm = 0.35 if world else 0.7  # by the signatures; two standard deviations below the threshold
  c.dedup.edit = 0.78 if world else 0.0  # least edit similarity of the words of a pair; 0 = not asked for

  c.decontaminate = ConfigDict()
  c.decontaminate.files = () if world or raw else (f'{data}/evals/*.jsonl.gz', f'{data}/evals/bbh/*.jsonl.gz')
  c.decontaminate.ngram = 13  # words

  c.tokenizer = ConfigDict()
  c.tokenizer.path = config_dict.placeholder(str)  # a SentencePiece .model; None trains one
  c.tokenizer.kind = 'bpe'  # bpe | unigram | char
  c.tokenizer.vocab = 1024 if world else 4096
  c.tokenizer.characters = 8_000_000  # to train on, divided among the sources by weight
  t = f'{data}/tokenizers'
  c.tokenizer.compare = () if world else (f'{t}/gpt2/tokenizer.json', f'{t}/sentencepiece/mistral_v1.model')

  c.mix = ConfigDict()
  weights = dict.fromkeys(c.sources, 1.0)
  c.mix.stages = ((1.0, weights),)  # (share of the tokens, {source: weight}), in order
  c.mix.tokens = 1_000_000 if world else 12_000_000  # that will be trained on
  c.mix.temperature = 1.0  # shares go with size^(1/temperature); 1 = natural, more = flatter
  c.mix.max_epochs = 4.0  # passes over a source, at most (UniMax)
  c.mix.caps = ConfigDict()  # {source: tokens drawn from it, at most}

  c.shards = ConfigDict()
  c.shards.kind = 'tokens'  # tokens (packed rows) | text (documents, for random access)
  c.shards.length = 128 if world else 512  # T, tokens per row
  c.shards.packing = 'best_fit'  # best_fit | concat
  return c
