"""data/tokenizer.py: round trips, streams, real models, and sentences for bad vocabularies."""

import io
import os

import numpy as np
import pytest

from llmstack.data.tokenizer import CHAT_TOKENS, Tokenizer, train
from llmstack.errors import BadInput

WORDS = 'the cat sat on a mat and then 1234 dogs ran over hills; "why?" she said.'.split()
TRICKY = (
  'two  spaces   three\n\n\n\ttab\r\nend\n',
  '    def f(x):\n        return x\n',
  ' leading and trailing ',
  '\n',
  'ﬁne Ａ ½ e\u0301 é Å',  # NFKC would change every one of these
  '日本語 😀👩‍👩‍👧 🇩🇪 \u200b',
  'a<|end|>b <s> </s> <0x41>',
  'nul \0 block \u2585',
)


def texts(n=200):
  rng = np.random.default_rng(0)
  return [' '.join(rng.choice(WORDS, 30)) + '\n  ' for _ in range(n)]


@pytest.fixture(scope='module', params=['bpe', 'unigram'])
def trained(request):
  return Tokenizer(train(texts(), kind=request.param, vocab=310))


@pytest.mark.parametrize('text', TRICKY)
def test_round_trip(trained, text):
  """Normalisation, a dummy prefix, squeezed spaces or a lost newline: none may change text."""
  assert trained.decode(trained.encode(text)) == text


def test_ids_of_control_and_chat_tokens(trained):
  """Shifted special ids, or a chat token that is cut into pieces, ruin every exported model."""
  assert (trained.pad, trained.bos, trained.eos, trained.vocab) == (0, 1, 2, 310)
  assert [trained.encode(token).tolist() for token in CHAT_TOKENS] == [[i] for i in range(4, 9)]
  assert trained.encode('').shape == (0,) and trained.encode('x').dtype == np.int32
  assert trained.decode([1, *trained.encode('cat'), 2, 0]) == 'cat'


def test_digits_are_single(trained):
  """Numbers merged into one piece: arithmetic becomes a matter of luck."""
  assert len(trained.encode('1234')) == 4


def test_batch_equals_single(trained):
  """encode_batch in another order, or with other options, than encode."""
  for one, many in zip(TRICKY, trained.encode_batch(TRICKY)):
    np.testing.assert_array_equal(trained.encode(one), many)


def test_fingerprint(trained):
  """A fingerprint that ignores content lets a run resume with another vocabulary."""
  again = Tokenizer(trained.proto)
  assert len(again.fingerprint) == 16 and again.fingerprint == trained.fingerprint
  other = Tokenizer(train(texts()[1:], kind='char', vocab=99))
  assert other.fingerprint != trained.fingerprint


@pytest.mark.parametrize('kind', ['bpe', 'unigram', 'char'])
def test_training_is_deterministic_and_silent(kind, capfd):
  """A model that depends on threads or clocks; hundreds of lines of trainer log."""
  size = 90 if kind == 'char' else 300
  assert train(texts(), kind=kind, vocab=size) == train(iter(texts()), kind=kind, vocab=size)
  assert capfd.readouterr() == ('', '')


def test_char_holds_every_character():
  """Rare characters, newlines and one-off symbols must not fall to <unk>; nothing else is added."""
  text = 'abba\n' * 50 + '\t\r\n😀 日Ａ'
  model = Tokenizer(train([text], kind='char', vocab=100))
  assert model.decode(model.encode(text)) == text
  assert model.vocab == 4 + len(CHAT_TOKENS) + len(set(text)) and len(model.encode(text)) == len(text)


def test_long_document_is_not_dropped():
  """SentencePiece skips sentences above a limit; a one-line book would leave the vocabulary empty."""
  book = ' '.join(texts(400)) + ' zygomorphic' * 900
  model = Tokenizer(train([book], kind='bpe', vocab=310))
  assert len(model.encode(' zygomorphic')) < 4
  late = Tokenizer(train(['x' * 500_000 + '日'], kind='char', vocab=50))
  assert late.decode(late.encode('日')) == '日'


def test_characters_limit():
  """A limit that is ignored: the trainer runs out of memory on a real corpus."""
  model = Tokenizer(train(['abc', 'def', 'xyz'], kind='char', vocab=50, characters=5))
  assert model.decode(model.encode('abcde')) == 'abcde' and model.decode(model.encode('f')) != 'f'


@pytest.mark.parametrize(
  'kind, vocab, sentence',
  [
    ('bpe', 100_000, r'vocab=100000 is too large for these texts: bpe gives \d+ at most'),
    ('unigram', 100_000, r'vocab=100000 is too large for these texts: unigram gives \d+ at most'),
    ('bpe', 100, r'vocab=100 is too small for these texts: bpe needs \d+ at least'),
    ('char', 12, r'need a char vocabulary of \d+, above vocab=12'),
    ('wordpiece', 12, 'choose bpe, unigram or char'),
  ],
)
def test_vocabulary_that_does_not_fit(kind, vocab, sentence):
  """A C++ stack of checks instead of a sentence with the size that works."""
  with pytest.raises(BadInput, match=sentence):
    train(texts(), kind=kind, vocab=vocab)


@pytest.mark.parametrize('kind', ['bpe', 'unigram', 'char'])
def test_no_text(kind):
  """An empty split trains nothing and must say so."""
  with pytest.raises(BadInput, match='no text to train'):
    train([], kind=kind, vocab=300)


def test_char_names_what_it_cannot_hold():
  """U+2581 would come back as a space, U+2585 would drop its whole sentence, both silently."""
  with pytest.raises(BadInput, match=r'U\+2581, U\+2585'):
    train(['a\u2581b\u2585'], kind='char', vocab=99)


def test_not_a_model(tmp_path, capfd):
  """Garbage must be named, and SentencePiece must not write its own report beside ours."""
  (tmp_path / 'empty.model').write_bytes(b'')
  (tmp_path / 'text.model').write_bytes(b'hello, world')
  with pytest.raises(BadInput, match=r'empty\.model is empty'):
    Tokenizer(tmp_path / 'empty.model')
  with pytest.raises(BadInput, match=r'text\.model is not a SentencePiece model'):
    Tokenizer(str(tmp_path / 'text.model'))
  with pytest.raises(BadInput, match=r'none\.model does not exist'):
    Tokenizer(tmp_path / 'none.model')
  with pytest.raises(BadInput, match='the tokenizer proto is not'):
    Tokenizer(b'hello, world')
  assert capfd.readouterr() == ('', '')


def streamed(model, ids):
  """Returns the deltas of a stream; asserts that none but the last has an unfinished character."""
  stream = model.stream()
  return [stream.feed(i) for i in ids] + [stream.end()]


@pytest.mark.parametrize('text', TRICKY)
def test_stream_of_text(trained, text):
  """Byte pieces decoded one by one show U+FFFD before each emoji."""
  deltas = streamed(trained, trained.encode(text))
  assert ''.join(deltas) == text and deltas[-1] == ''
  assert '\ufffd' not in ''.join(deltas)


def check_random_streams(model, seed):
  rng = np.random.default_rng(seed)
  byte_0 = model.encode('\0')[-1]  # bytes follow each other from here, where the model has them
  special = np.arange(byte_0, min(byte_0 + 256, model.vocab))
  for _ in range(300):
    ids = np.where(rng.random(12) < 0.5, rng.choice(special, 12), rng.integers(model.vocab, size=12))
    assert ''.join(streamed(model, ids)) == model.decode(ids)
    stream = model.stream()
    assert stream.feed(ids[:5]) + stream.feed(ids[5:]) + stream.end() == model.decode(ids)


def test_stream_of_random_ids(trained):
  """Invalid UTF-8, control tokens and cut characters must join to decode(all) as well."""
  check_random_streams(trained, 1)


def test_model_with_other_settings():
  """Llama-like models: a stream that drops or keeps the dummy space otherwise than decode."""
  import sentencepiece

  proto = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(texts()),
    model_writer=proto,
    vocab_size=290,
    byte_fallback=True,
    bos_id=-1,
    minloglevel=2,
  )
  model = Tokenizer(proto.getvalue())
  assert (model.bos, model.eos, model.pad) == (None, model.eos, model.eos)
  ids = model.encode('the cat sat')
  assert model.decode(ids) == 'the cat sat' == ''.join(streamed(model, ids))
  check_random_streams(model, 3)


REAL = (
  'tokenizers/sentencepiece/mistral_v1.model',
  'tokenizers/sentencepiece/test_model.model',
  'tokenizers/sentencepiece/test_ja_model.model',
  'tokenizers/sentencepiece/seqio_sentencepiece.model',
  'tokenizers/sentencepiece/maxtext_default.model',
  'weights/stories260K/tok512.model',
)


@pytest.mark.parametrize('name', REAL)
def test_real_models(name):
  """A model made elsewhere (dummy prefix, no pad, other ids) must load and stream unchanged."""
  if 'LLMSTACK_DATA' not in os.environ:
    pytest.skip('LLMSTACK_DATA does not name the folder of real data')
  model = Tokenizer(os.path.join(os.environ['LLMSTACK_DATA'], name))
  ids = model.encode('a time')
  assert model.decode(ids) == 'a time' == ''.join(streamed(model, ids))
  assert 0 <= model.pad < model.vocab
  check_random_streams(model, 2)
  if name.endswith('tok512.model'):
    assert model.encode('Once upon a time').tolist() == [403, 407, 261, 378]
    assert (model.bos, model.eos, model.pad) == (1, 2, 2)  # it has no pad


def test_ids_past_the_vocabulary_decode_to_nothing():
  """A model whose vocabulary was rounded up draws a spare id, and SentencePiece raises in the middle of an answer."""
  made = Tokenizer(train(['a small text, quite small'] * 9, kind='bpe', vocab=280))
  ids = made.encode('small').tolist()
  assert made.decode([ids[0], made.vocab, *ids[1:], made.vocab + 9]) == 'small'
  assert made.stream().feed([made.vocab, *ids, made.vocab]) == 'small'


@pytest.mark.parametrize('kind, vocab', [('bpe', 400), ('bpe', 1200), ('unigram', 400)])
def test_words_encode_as_whole_texts_do(kind, vocab):
  """A merge over the border of two words is lost, chat tokens are cut up, or a symbol of a text is forgotten."""
  with open('README.md') as f:
    readme = f.read()
  tokenizer = Tokenizer(train([readme, 'x ' * 99, '\n\n- '.join('abc' * 9)], kind=kind, vocab=vocab))
  assert (tokenizer._symbols is None) == (kind == 'unigram'), (
    'of several equal paths unigram takes one by the whole text'
  )
  r = np.random.RandomState(0)
  alphabet = [
    *'  \n\t.,-_#9ax',
    'Der',
    'λό',
    'é',
    'e\u0301',
    '日本',
    '\u3000',
    '\u2581',
    '<|user|>',
    '<unk>',
    '😀',
    'the ',
  ]
  texts = ['', ' ', '\n', readme, *(''.join(r.choice(alphabet, n)) for n in r.randint(1, 60, 300))]
  for _ in range(2):  # the second time, every word is remembered
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
      assert ids.dtype == np.int32 and ids.tolist() == tokenizer.encode(text).tolist(), repr(text)
