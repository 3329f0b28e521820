"""Tokenizers: saved and loaded bit-equal, special tokens by string, text never mistaken for one."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from janus_plugins.core.errors import BadSample, CheckpointError, RunFileError
from janus_plugins.core.schema import TokenizerBlock
from janus_plugins.sequence.tokenizers import TextTokenizer, build_tokenizer, load_tokenizer

SPECIAL = ("<s>", "</s>", "<pad>", "<begin_of_image>", "<end_of_image>", "<image_placeholder>")
TEXTS = ["Which digit is this?", "Put in order: seven two nine", "a handwritten seven", "don't\nstop"]
BLOCKS = [
    TokenizerBlock(type="bytes"),
    TokenizerBlock(type="trained", level="word", vocab_size=64),
    TokenizerBlock(type="trained", level="bpe", vocab_size=300),
]
KINDS = ["bytes", "word", "bpe"]


@pytest.fixture(params=BLOCKS, ids=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> TextTokenizer:
    return build_tokenizer(request.param, SPECIAL, TEXTS)


AWKWARD = "Seven, <end_of_image>two\n\n nine </s> don't ünïcödé 七 \u0000 <unk>"


def test_round_trip_through_a_folder_is_bit_equal(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    tokenizer.save(str(tmp_path))
    for again in (load_tokenizer(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        for text in [*TEXTS, AWKWARD]:
            assert again.encode(text) == tokenizer.encode(text)
            assert again.encode_plain(text) == tokenizer.encode_plain(text)
        assert len(again) == len(tokenizer)
        assert again.special == SPECIAL


def test_special_tokens_are_single_ids_left_out_of_text(tokenizer: TextTokenizer) -> None:
    ids = [tokenizer.id_of(token) for token in SPECIAL]
    assert len(set(ids)) == len(SPECIAL)
    assert tokenizer.encode("".join(SPECIAL)) == ids
    assert tokenizer.decode(tokenizer.encode("<s>seven</s>")) == "seven"
    assert max(ids) < len(tokenizer)


def test_text_that_spells_a_special_token_stays_text(tokenizer: TextTokenizer) -> None:
    reserved = {tokenizer.id_of(token) for token in SPECIAL}
    assert tokenizer.id_of("<end_of_image>") in tokenizer.encode(AWKWARD)
    assert not reserved & set(tokenizer.encode_plain(AWKWARD))
    ids, offsets = tokenizer.encode_spans("a <s> b")
    assert len(ids) == len(offsets)
    assert offsets[-1][1] == 7


def test_split_finds_the_longest_special_token() -> None:
    tokenizer = build_tokenizer(BLOCKS[0], ("<s>", "</s>", "<pad>", "<s><s>"))
    assert tokenizer.split("a<s><s><s>b") == ["a", tokenizer.id_of("<s><s>"), tokenizer.id_of("<s>"), "b"]


def test_unknown_special_token_names_the_nearest(tokenizer: TextTokenizer) -> None:
    with pytest.raises(RunFileError, match=r"no special token '<start_of_image>'.*'<end_of_image>'"):
        tokenizer.id_of("<start_of_image>")
    with pytest.raises(RunFileError, match="no special token 'a'"):
        tokenizer.id_of("a")


def test_bytes_are_their_own_ids() -> None:
    tokenizer = build_tokenizer(BLOCKS[0], SPECIAL)
    text = bytes(range(1, 128)).decode() + "é七🙂"
    assert tokenizer.encode_plain(text) == list(text.encode())
    assert tokenizer.decode(tokenizer.encode_plain(text)) == text
    assert (tokenizer.id_of("<s>"), len(tokenizer)) == (256, 256 + len(SPECIAL))


def test_bpe_keeps_any_text() -> None:
    tokenizer = build_tokenizer(BLOCKS[2], SPECIAL, TEXTS)
    assert tokenizer.decode(tokenizer.encode_plain(AWKWARD)) == AWKWARD
    assert len(tokenizer.encode_plain("seven")) < 5


def test_words_fold_case_and_decode_with_spaces() -> None:
    tokenizer = build_tokenizer(BLOCKS[1], SPECIAL, [*TEXTS, "(yes): no, never."])
    assert len(tokenizer.encode_plain("Which DIGIT is this?")) == 5
    for text in ("which digit is this?", "put in order: seven two nine", "don't\nstop", "(yes): no, never."):
        assert tokenizer.decode(tokenizer.encode_plain(text)) == text
    assert tokenizer.decode(tokenizer.encode_plain("seven zebras")) == "seven <unk>"


def test_equal_texts_give_equal_vocabularies() -> None:
    words = [f"word{index % 37} word{index % 11}" for index in range(200)]
    for block in BLOCKS[1:]:
        one, other = (build_tokenizer(block, SPECIAL, texts) for texts in (words, list(words)))
        assert one._backend.to_str() == other._backend.to_str()


def test_vocab_size_is_a_ceiling(caplog: pytest.LogCaptureFixture) -> None:
    texts = [f"word{index}" for index in range(100)]
    tokenizer = build_tokenizer(TokenizerBlock(type="trained", level="word", vocab_size=20), SPECIAL, texts)
    assert len(tokenizer) == 20
    assert "88 of 100 words do not fit vocab_size 20" in caplog.text
    with pytest.raises(RunFileError, match=r"vocab_size is 100.* take 262"):
        build_tokenizer(TokenizerBlock(type="trained", level="bpe", vocab_size=100), SPECIAL, texts)


def test_published_tokenizer_needs_its_own_bos_eos_and_pad(tmp_path: Path) -> None:
    build_tokenizer(BLOCKS[2], SPECIAL[:3], TEXTS).save(str(tmp_path))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        block = TokenizerBlock(path=str(path))
        tokenizer = build_tokenizer(block, SPECIAL)
        assert [tokenizer.id_of(token) for token in SPECIAL[3:]] == [300, 301, 302]  # added at the end
        with pytest.raises(RunFileError, match="no token '<eos>'"):
            build_tokenizer(block, ("<s>", "<eos>", "<pad>"))
    with pytest.raises(RunFileError, match="does not exist"):
        build_tokenizer(TokenizerBlock(path=str(tmp_path / "none")), SPECIAL)


def test_ordinary_added_tokens_are_taken_literally_once_they_are_special(tmp_path: Path) -> None:
    build_tokenizer(BLOCKS[0], SPECIAL).save(str(tmp_path))
    file = tmp_path / "tokenizer.json"
    data = json.loads(file.read_text())
    for token in data["added_tokens"]:
        token["special"] = False
    file.write_text(json.dumps(data))
    tokenizer = build_tokenizer(TokenizerBlock(path=str(file)), SPECIAL)
    assert tokenizer.encode_plain("<s>") == list(b"<s>")
    assert tokenizer.decode(tokenizer.encode("<s>a")) == "a"


def test_a_vocabulary_that_cannot_spell_it_refuses_the_text(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<pad>": 2, "a": 3, "?": 4}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = TextTokenizer(backend, SPECIAL[:3])
    assert tokenizer.encode_plain("a b") == [3, 4]
    with pytest.raises(BadSample, match="contains '</s>'"):
        tokenizer.encode_plain("a </s>")


def test_broken_unicode_is_a_bad_sample(tokenizer: TextTokenizer) -> None:
    with pytest.raises(BadSample, match="surrogate"):
        tokenizer.encode_plain("a\ud800b")


def test_damaged_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        load_tokenizer(tmp_path)
    build_tokenizer(BLOCKS[0], SPECIAL).save(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_tokenizer(tmp_path)


def test_no_torch_is_imported() -> None:
    code = (
        "import sys; from janus_plugins.sequence import tokenizers, layout, templates, packing, assemble\n"
        "from janus_plugins.core.schema import TokenizerBlock\n"
        "tokenizers.build_tokenizer(TokenizerBlock(type='bytes'), ('<s>', '</s>', '<pad>')).encode('a')\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
