import sys
import types

import pytest
import torch

from unseen.errors import InputError, MissingExtra
from unseen.prompts import mine_negative_labels, wordnet_candidates


class Reader:
    """What is read of a WordNet, by part of speech."""

    def __init__(self, **words):
        self.words = {"n": ["ice_cream", "dog", "Paris", "red"], "a": ["red", "wet"], "v": ["run"]} | words

    def all_lemma_names(self, pos):
        return iter(self.words[pos])


def test_nouns_and_adjectives_are_words_in_order():
    assert wordnet_candidates(Reader()) == {
        "nouns": ["dog", "ice cream", "paris", "red"],
        "adjectives": ["red", "wet"],
    }


def test_nltks_own_reader_is_the_default(monkeypatch):
    nltk = types.ModuleType("nltk")
    nltk.corpus = types.ModuleType("nltk.corpus")
    nltk.corpus.wordnet = Reader(a=["shy"])
    monkeypatch.setitem(sys.modules, "nltk", nltk)
    monkeypatch.setitem(sys.modules, "nltk.corpus", nltk.corpus)
    assert wordnet_candidates()["adjectives"] == ["shy"]


def test_the_pools_are_candidates_in_proportion_to_their_sizes():
    class Letters:
        logit_scale = 1.0

        def encode_text(self, texts):
            counts = [[1 + text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts]
            return torch.tensor(counts, dtype=torch.float32)

    found = mine_negative_labels(Letters(), ["dogs"], wordnet_candidates(Reader()), 3)
    # "dog" is the class and "red" a noun first: two nouns of three and the adjective that is left
    assert len(found) == 3 and "wet" in found and set(found) < {"ice cream", "paris", "red", "wet"}


def test_without_nltk_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk", None)
    monkeypatch.setitem(sys.modules, "nltk.corpus", None)
    with pytest.raises(MissingExtra, match=r"unseen\[wordnet\]"):
        wordnet_candidates()


def test_without_its_corpus_the_command_is_named():
    class Absent:
        def all_lemma_names(self, pos):
            raise LookupError("Resource wordnet not found")

    with pytest.raises(InputError, match=r"nltk\.downloader wordnet"):
        wordnet_candidates(Absent())
    with pytest.raises(InputError, match="no adjectives"):
        wordnet_candidates(Reader(a=[]))


NOUNS = ("dog", "ice_cream")
ADJECTIVES = ("shy", "wet")


def write_wordnet(folder):
    """A WordNet of two nouns and two adjectives, one a satellite, in the form of its files."""
    for name in ("cntlist.rev", "index.sense", "index.adv", "index.verb", "data.adv", "data.verb"):
        (folder / name).write_text("")
    for name in ("adj.exc", "adv.exc", "noun.exc", "verb.exc"):
        (folder / name).write_text("")
    (folder / "lexnames").write_text("00\tadj.all\t3\n01\tadj.pert\t3\n02\tadv.all\t4\n03\tnoun.Tops\t1\n")
    for part, mark, words, kinds, lexname in (
        ("noun", "n", NOUNS, "nn", 3), ("adj", "a", ADJECTIVES, "as", 0),
    ):  # fmt: skip
        index, data = "", "  1 This stands for the licence | WordNet 3.0 Copyright\n"
        for word, kind in zip(words, kinds, strict=True):
            offset = len(data)
            data += f"{offset:08d} {lexname:02d} {kind} 01 {word} 0 000 | a meaning  \n"
            index += f"{word} {mark} 1 0 1 0 {offset:08d}  \n"
        (folder / f"index.{part}").write_text(index)
        (folder / f"data.{part}").write_text(data)


@pytest.fixture
def nltk_reader(tmp_path, monkeypatch):
    """nltk's own reader, which looks for its data in a folder of the test and nowhere else."""
    corpus = pytest.importorskip("nltk.corpus", reason="nltk reads WordNet's files")
    monkeypatch.setattr("nltk.data.path", [str(tmp_path)])
    return corpus.LazyCorpusLoader("wordnet", corpus.WordNetCorpusReader, None)


@pytest.mark.filterwarnings("ignore:The multilingual functions")
def test_the_files_of_a_wordnet_are_read(tmp_path, nltk_reader):
    folder = tmp_path / "corpora" / "wordnet"
    folder.mkdir(parents=True)
    write_wordnet(folder)
    assert wordnet_candidates(nltk_reader) == {"nouns": ["dog", "ice cream"], "adjectives": ["shy", "wet"]}


def test_nltk_without_its_data_names_the_command(nltk_reader):
    with pytest.raises(InputError, match=r"nltk\.downloader wordnet"):
        wordnet_candidates(nltk_reader)
