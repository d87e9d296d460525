"""The suites that a model's abilities and a test split allow: images, questions and the function that scores them."""

import hashlib
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from PIL import Image
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from vlmflow.artifacts.dataset import Dataset
from vlmflow.evaluation import capabilities, masked, objects
from vlmflow.evaluation.capabilities import Question
from vlmflow.evaluation.config import EvaluateConfig
from vlmflow.images.decoding import decode
from vlmflow.inference.loading import LoadedModel
from vlmflow.inference.prompts import question_turns

logger = logging.getLogger(__name__)

_SUITE_OF = {"image_text_matching": "image-text matching", "fill_mask": "fill-mask", "reconstruct": "reconstruction"}
Turn = tuple[dict[str, Any], int, str, str]  # conversation row, number of the turn, question, answer


@dataclass
class Suite:
    """One measurement: its images, the uids of its examples and the function that scores them.

    `joint`: an example's score depends on the other examples, as recall depends on all captions; its controls then
    need the same number of examples. `available`: the test examples of which these are a sample; 0 if these are all.
    """

    images: list[Image.Image]
    uids: list[str]
    measure: Callable[..., Any]  # (loaded, images, items) -> Result or {capability: Result}
    items: list[Any]
    joint: bool = False
    available: int = 0


def build_suites(
    loaded: LoadedModel, pairs: Dataset, conversations: Dataset, section: EvaluateConfig
) -> tuple[dict[str, Suite], dict[str, str]]:
    """Build the suites that the model's abilities and the test split allow, by name.

    Returns:
        The suites, and the reason for each that the model's abilities allow but the test split does not.
    """
    suites, missing = build_pair_suites(loaded, pairs, section)
    turns, limit = _test_turns(conversations), {"max_new_tokens": section.max_new_tokens}
    vocabulary = conversations.card.notes.get("categories", [])
    question_suites: dict[str, tuple[str, str, Callable[..., Any]]] = {  # task of the conversations, ability, measure
        "captioning": ("caption", "caption", partial(capabilities.captioning, **limit)),
        "objects": ("objects", "caption", partial(capabilities.object_listing, vocabulary=vocabulary, **limit)),
        "grounding": ("ground", "ground", partial(capabilities.grounding, **limit)),
        "ocr": ("ocr", "ocr", partial(capabilities.text_recognition, **limit)),
        "pope": ("vqa", "chat", capabilities.pope),
        "classification": ("classify", "chat", partial(capabilities.exact_match, **limit)),
        "statements": ("statement", "chat", partial(capabilities.exact_match, **limit)),
    }
    for name, (task, ability, measure) in question_suites.items():
        if ability not in loaded.abilities:
            continue
        if len(turns.get(task, [])) < 2:
            if task in turns:
                missing[name] = f"only one test question of task {task}"
            continue
        suites[name] = _question_suite(turns[task], measure, section)
        if name in ("captioning", "ocr"):  # answers as long as the text
            _warn_of_long_answers(loaded, name, suites[name], section.max_new_tokens)
    if "score" in loaded.abilities and "objects" in suites and len(vocabulary) > 1:
        source = suites["objects"]
        wrong = [(question, swap_one_object(question, vocabulary, section.seed)) for question in source.items]
        keep = [i for i, (_, answer) in enumerate(wrong) if answer is not None]
        if len(keep) > 1:
            suites["preference"] = Suite(
                [source.images[i] for i in keep],
                [source.uids[i] for i in keep],
                capabilities.preference,
                [wrong[i] for i in keep],
            )
    return suites, missing


def _warn_of_long_answers(loaded: LoadedModel, name: str, suite: Suite, limit: int) -> None:
    """Warn of true answers that the model cannot give in full."""
    lengths = [len(ids) for ids in loaded.tokenizer([question.answer for question in suite.items])["input_ids"]]
    if cut := sum(length > limit for length in lengths):
        logger.warning(
            "%s: %d of %d true answers are longer than evaluate.max_new_tokens %d, up to %d tokens; such answers are "
            "cut off and count as wrong", name, cut, len(lengths), limit, max(lengths),
        )  # fmt: skip


def _test_turns(conversations: Dataset) -> dict[str, list[Turn]]:
    """The test split's questions and answers by task; a repeated conversation counts once.

    A model is asked about one image, so conversations about several are left out, with a warning.
    """
    turns: dict[str, list[Turn]] = {}
    seen: set[str] = set()
    several = 0
    for row in conversations.rows():
        if row["split"] != "test" or row["uid"] in seen:
            continue
        seen.add(row["uid"])
        if len(row["images"]) != 1:
            several += 1
            continue
        for number, (question, answer) in enumerate(question_turns(row["messages"])):
            turns.setdefault(row["task"], []).append((row, number, question, answer))
    if several:
        logger.warning("%d test conversations have several images and are not measured", several)
    return turns


def build_pair_suites(
    loaded: LoadedModel, pairs: Dataset, section: EvaluateConfig
) -> tuple[dict[str, Suite], dict[str, str]]:
    """Build the suites on captioned and on labelled images, and name the missing ones, as `build_suites` does."""
    abilities = loaded.abilities
    if pairs.card.schema != "pairs":
        return {}, {}
    if (
        not abilities & {"classify", "retrieval", "features", "image_text_matching", "fill_mask", "reconstruct"}
        and not section.held_out_loss
    ):
        return {}, {}
    rows = list(pairs.rows(["uid", "image", "caption", "label", "split"]))
    test = [row for row in rows if row["split"] == "test"]
    all_captioned, all_labelled = [row for row in test if row["caption"].strip()], [row for row in test if row["label"]]
    captioned, labelled = (_subsample(every, section.limit, section.seed) for every in (all_captioned, all_labelled))
    suites = _caption_suites(abilities, captioned, section) if len(captioned) > 1 else {}
    wanted = abilities & {"retrieval", "image_text_matching", "fill_mask", "reconstruct"}
    counted = (
        f"{len({row['caption'] for row in captioned})} distinct captions of {len(captioned)} captioned test images"
    )
    missing = {_SUITE_OF.get(name, name): counted for name in wanted if _SUITE_OF.get(name, name) not in suites}
    if len(classes := {row["label"] for row in labelled}) > 1:
        labels = [row["label"] for row in labelled]
        if "classify" in abilities:
            zero_shot = partial(capabilities.zero_shot, templates=section.class_templates)
            suites["zero-shot"] = _pair_suite(labelled, zero_shot, labels, joint=True)
        train = [row for row in rows if row["split"] == "train" and row["label"] in classes]
        if "features" in abilities and len({row["label"] for row in train}) > 1:
            probe = masked.Probe(loaded, _images(train), [row["label"] for row in train])
            suites["probe"] = _pair_suite(labelled, probe, labels)
    elif labelled:
        reason = f"{len(classes)} class among {len(labelled)} labelled test images"
        missing |= {
            name: reason for ability, name in (("classify", "zero-shot"), ("features", "probe")) if ability in abilities
        }
    for name, suite in suites.items():
        suite.available = len(all_labelled if name in ("zero-shot", "probe") else all_captioned)
    if section.held_out_loss and len(captioned) >= 2 * section.loss_batch:
        measure = partial(masked.held_out_loss, batch_size=section.loss_batch, seed=section.seed)
        suite = _pair_suite(captioned, measure, [row["caption"] for row in captioned], joint=True)
        batches = len(captioned) // section.loss_batch
        suites["held-out loss"] = replace(suite, uids=[f"batch {i}" for i in range(batches)])
    return suites, missing


def _caption_suites(abilities: frozenset[str], rows: list[dict[str, Any]], section: EvaluateConfig) -> dict[str, Suite]:
    suites: dict[str, Suite] = {}
    captions = [row["caption"] for row in rows]
    several = len(set(captions)) > 1  # of one caption nothing can be told apart
    if "retrieval" in abilities and several:
        keys = [hashlib.blake2b(row["image"]["bytes"], digest_size=16).hexdigest() for row in rows]
        measure = partial(capabilities.retrieval, image_keys=keys)
        suites["retrieval"] = _pair_suite(rows, measure, captions, joint=True)
    if "image_text_matching" in abilities and several:
        items = list(zip(captions, _different_captions(captions), strict=True))
        suites["image-text matching"] = _pair_suite(rows, masked.matching_accuracy, items)
    if "fill_mask" in abilities:
        words = [choose_hidden_word(row, section.seed) for row in rows]
        hidden = [(row, word) for row, word in zip(rows, words, strict=True) if word is not None]
        if hidden:
            items = [(row["caption"], word) for row, word in hidden]
            suites["fill-mask"] = _pair_suite([row for row, _ in hidden], masked.fill_mask_accuracy, items)
    if "reconstruct" in abilities:
        suite = _pair_suite(rows, partial(masked.reconstruction, seed=section.seed), captions, joint=True)
        suites["reconstruction"] = replace(suite, items=list(zip(suite.images, captions, strict=True)))
    return suites


def _different_captions(captions: list[str]) -> list[str]:
    """For each caption the next one that differs from it."""
    count = len(captions)
    return [next((c for c in captions[i + 1 :] + captions[:i] if c != captions[i]), "") for i in range(count)]


def choose_hidden_word(row: dict[str, Any], seed: int) -> int | None:
    """Index of the content word to hide in the row's caption; None if it has no content word."""
    indices = content_words(row["caption"])
    return random.Random(f"{seed}/{row['uid']}").choice(indices) if indices else None


def content_words(caption: str) -> list[int]:
    """Indices of the words that are not stop words."""
    words = caption.split()
    return [i for i, word in enumerate(words) if word.lower().strip(".,;:!?") not in ENGLISH_STOP_WORDS]


def swap_one_object(question: Question, vocabulary: list[str], seed: int) -> str | None:
    """The true list with one category replaced by an absent one; None if there is nothing to replace it with."""
    rng = random.Random(f"{seed}/{question.uid}")
    true = objects.parse(question.answer, vocabulary)
    absent = [category for category in vocabulary if category not in true]
    if not absent or not true:
        return None
    old = rng.choice(sorted(true))
    new = rng.choice(absent)
    return objects.list_objects([new if category == old else category for category in true.elements()])


def _subsample(rows: list[Any], count: int, seed: int) -> list[Any]:
    """At most `count` rows, chosen by `seed`, in their original order."""
    if len(rows) <= count:
        return rows
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), count))]


def _pair_suite(rows: list[dict[str, Any]], measure: Any, items: list[Any], joint: bool = False) -> Suite:
    return Suite(_images(rows), [row["uid"] for row in rows], measure, items, joint)


def _images(rows: list[dict[str, Any]]) -> list[Image.Image]:
    return [decode(row["image"]["bytes"]) for row in rows]


def _question_suite(turns: list[Turn], measure: Any, section: EvaluateConfig) -> Suite:
    images, uids, questions = [], [], []
    for row, number, question, answer in _subsample(turns, section.questions, section.seed):
        image = decode(row["images"][0]["bytes"])
        images.append(image)
        uids.append(f"{row['uid']}/{number}")
        questions.append(Question(uids[-1], image.size, question, answer))
    return Suite(images, uids, measure, questions, available=len(turns))
