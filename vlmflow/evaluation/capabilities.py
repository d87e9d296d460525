"""The capabilities of a model, one function each: a score for each example.

Each function takes images and questions separately, so that the same code measures the controls: blank images, and
each question with the image of another question.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jiwer
import numpy as np
from PIL import Image
from sacrebleu.metrics import CHRF
from sklearn.metrics import confusion_matrix

from vlmflow.evaluation import objects
from vlmflow.images.boxes import CANONICAL, CODECS, Box, box_from_match
from vlmflow.inference.embedding import classify, similarity
from vlmflow.inference.generation import chat, score
from vlmflow.inference.loading import LoadedModel
from vlmflow.inference.prompts import CLASS_TEMPLATES

Images = Sequence[Image.Image]

MAX_CONFUSION_CLASSES = 50


@dataclass(frozen=True)
class Question:
    """One held-out question: the example's uid, the image's size (width, height), the prompt and the true answer."""

    uid: str
    size: tuple[int, int]
    prompt: str
    answer: str


@dataclass
class Result:
    """Scores of a capability.

    The reported value is sum(score) / sum(weight), which covers means and corpus error rates alike; with `groups` it is
    the mean of the groups' means. `secondary` are further metrics of the same answers. `gain` holds
    score / weight, negated if lower is better, for the paired comparison of two models. `needs_image` is false where a
    model can do well without the image: a hidden word is often clear from the text, and a model that names nothing
    hallucinates nothing. The gate then does not ask for a value better than with blank images.
    """

    metric: str
    score: np.ndarray
    weight: np.ndarray
    higher_is_better: bool = True
    needs_image: bool = True
    groups: np.ndarray | None = None  # (N,) int
    secondary: dict[str, "Result"] = field(default_factory=dict)
    extras: dict[str, float] = field(default_factory=dict)
    answers: list[str] = field(default_factory=list)
    confusion: dict[str, Any] | None = None  # {"classes": names, "rows": counts by true and predicted class}

    @property
    def value(self) -> float:
        """The reported value."""
        if self.groups is None:
            return float(self.score.sum() / self.weight.sum())
        return float(np.mean([self.score[self.groups == group].mean() for group in np.unique(self.groups)]))

    @property
    def gain(self) -> np.ndarray:
        ratio = self.score / np.maximum(self.weight, 1e-9)
        return ratio if self.higher_is_better else -ratio


def mean(metric: str, score: Any, **more: Any) -> Result:
    """A result whose value is the mean score."""
    score = np.asarray(score, float)
    return Result(metric, score, np.ones_like(score), **more)


def retrieval(
    loaded: LoadedModel, images: Images, captions: Sequence[str], image_keys: Sequence[str] | None = None
) -> Result:
    """Recall@1 from image to caption, over the distinct captions; a tie is a miss.

    Captions that repeat form a group: any caption of an image, and any image of a caption, is right, and each distinct
    caption and image is a candidate once. R@k is omitted where there are no more than k candidates: it would be 1.

    Args:
        image_keys: equal for rows that show the same image; None: all images differ.

    Source: Karpathy and Fei-Fei 2015 (recall with five captions for each image).
    """
    caption_of_row = np.unique(captions, return_inverse=True)[1]
    image_of_row = np.unique(image_keys or np.arange(len(captions)), return_inverse=True)[1]
    scores = similarity(loaded, images, captions)
    belong = np.zeros((image_of_row.max() + 1, caption_of_row.max() + 1), dtype=bool)
    belong[image_of_row, caption_of_row] = True
    image_to_text = _ranks(_best_of_groups(scores, caption_of_row), belong[image_of_row])
    text_to_image = _ranks(_best_of_groups(_best_of_groups(scores, caption_of_row).T, image_of_row), belong.T)
    secondary = {
        f"R@{k} {direction}": mean(f"R@{k} of {candidates}", ranks < k)
        for direction, ranks, candidates in (
            ("i2t", image_to_text, belong.shape[1]),
            ("t2i", text_to_image, belong.shape[0]),
        )
        for k in (1, 5, 10)
        if k < candidates and (k, direction) != (1, "i2t")
    }
    return mean(f"R@1 of {belong.shape[1]}, image to text", image_to_text < 1, secondary=secondary)


def _best_of_groups(scores: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return the largest score of each group of columns: (N, G) from (N, M) and the group of each column, (M,)."""
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(group.max() + 1))
    return np.maximum.reduceat(scores[:, order], starts, axis=1)


def _ranks(similarity: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Rank (N,) of the best right candidate among the wrong ones, 0 is first; ties count as worse."""
    best = np.where(right, similarity, -np.inf).max(1, keepdims=True)
    return ((similarity >= best - 1e-7) & ~right).sum(1)


def zero_shot(
    loaded: LoadedModel, images: Images, labels: Sequence[str], templates: Sequence[str] = CLASS_TEMPLATES
) -> Result:
    """Top-1 accuracy of zero-shot classification among the labels of the set; the mean over classes is secondary."""
    classes = sorted(set(labels))
    predictions = classify(loaded, images, classes, templates).argmax(1)
    hits = [classes[p] == label for p, label in zip(predictions, labels, strict=True)]
    secondary = {"macro accuracy": macro_accuracy(hits, labels)}
    confusion = _confusion(classes, labels, predictions)
    return mean(f"top-1 of {len(classes)} classes", hits, confusion=confusion, secondary=secondary)


def macro_accuracy(hits: Any, labels: Sequence[str]) -> Result:
    """Mean over the classes of the accuracy within each class, (N,) hits and labels."""
    return mean("mean over classes", hits, groups=np.unique(np.array(labels), return_inverse=True)[1])


def _confusion(classes: list[str], labels: Sequence[str], predictions: np.ndarray) -> dict[str, Any] | None:
    """Counts by true and predicted class; None for more classes than a page can show."""
    if len(classes) > MAX_CONFUSION_CLASSES:
        return None
    rows = confusion_matrix(labels, [classes[p] for p in predictions], labels=classes)
    return {"classes": classes, "rows": rows.tolist()}


def captioning(loaded: LoadedModel, images: Images, questions: Sequence[Question], max_new_tokens: int = 40) -> Result:
    """chrF++ of the caption against the reference, 0 to 1.

    Source: Popović 2017, as implemented in sacrebleu.
    """
    answers = _ask(loaded, images, questions, max_new_tokens)
    chrf = CHRF(word_order=2)
    scores = [chrf.sentence_score(a, [q.answer]).score / 100 for a, q in zip(answers, questions, strict=True)]
    return mean("chrF++", scores, answers=answers)


def object_listing(
    loaded: LoadedModel,
    images: Images,
    questions: Sequence[Question],
    vocabulary: Sequence[str],
    max_new_tokens: int = 40,
) -> dict[str, Result]:
    """Exact match of the list of objects, and CHAIR-s: the share of answers that name an absent object.

    CHAIR-i, the share of absent objects among the named ones, is among the extras; undefined if no object is named.
    Source: Rohrbach et al. 2018.
    """
    answers = _ask(loaded, images, questions, max_new_tokens)
    named = [objects.parse(answer, vocabulary) for answer in answers]
    true = [objects.parse(q.answer, vocabulary) for q in questions]
    hallucinated = [sum(1 for category in n if category not in t) for n, t in zip(named, true, strict=True)]
    mentioned = sum(len(n) for n in named)
    chair_i = {"CHAIR-i": sum(hallucinated) / mentioned} if mentioned else {}
    exact = [a == q.answer for a, q in zip(answers, questions, strict=True)]
    return {
        "objects": mean("exact match", exact, answers=answers),
        "hallucination": mean(
            "CHAIR-s",
            [count > 0 for count in hallucinated],
            higher_is_better=False,
            needs_image=False,
            extras=chair_i | {"objects mentioned": mentioned},
            answers=answers,
        ),
    }


def grounding(loaded: LoadedModel, images: Images, questions: Sequence[Question], max_new_tokens: int = 40) -> Result:
    """Acc@0.5 of the box for a referring expression; an answer without a box is a miss and a parse failure."""
    codec = CODECS[loaded.box_convention]
    answers = _ask(loaded, images, questions, max_new_tokens)
    overlaps, failures = [], 0
    for answer, question in zip(answers, questions, strict=True):
        box = codec.decode(answer, *question.size)
        failures += box is None
        overlaps.append(0.0 if box is None else box.iou(true_box(question)))
    extras = {"mean IoU": float(np.mean(overlaps)), "parse failures": failures / len(questions)}
    return mean("Acc@0.5", [o >= 0.5 for o in overlaps], extras=extras, answers=answers)


def true_box(question: Question) -> Box:
    """The box in the true answer of a grounding question."""
    match = CANONICAL.search(question.answer)
    assert match is not None, f"{question.uid}: the true answer of a grounding question has no box"
    return box_from_match(match, *question.size)


def text_recognition(
    loaded: LoadedModel, images: Images, questions: Sequence[Question], max_new_tokens: int = 40
) -> dict[str, Result]:
    """Exact match of a text line, and the corpus character error rate: errors / characters, without normalisation."""
    answers = _ask(loaded, images, questions, max_new_tokens)
    counts = [jiwer.process_characters(q.answer, a) for a, q in zip(answers, questions, strict=True)]
    errors = np.array([c.substitutions + c.deletions + c.insertions for c in counts], float)
    lengths = np.array([max(1, len(q.answer)) for q in questions], float)
    exact = [a == q.answer for a, q in zip(answers, questions, strict=True)]
    return {
        "ocr": mean("exact match", exact, answers=answers),
        "ocr errors": Result("CER", errors, lengths, higher_is_better=False, answers=answers),
    }


def exact_match(loaded: LoadedModel, images: Images, questions: Sequence[Question], max_new_tokens: int = 40) -> Result:
    """Share of answers equal to the true one, apart from case and a full stop; the mean over answers is secondary."""
    answers = _ask(loaded, images, questions, max_new_tokens)
    hits = [_plain(a) == _plain(q.answer) for a, q in zip(answers, questions, strict=True)]
    secondary = {"macro accuracy": macro_accuracy(hits, [_plain(q.answer) for q in questions])}
    return mean("exact match", hits, answers=answers, secondary=secondary)


def _plain(answer: str) -> str:
    return answer.lower().strip(" .")


def pope(loaded: LoadedModel, images: Images, questions: Sequence[Question]) -> Result:
    """Accuracy on questions about the presence of objects; `yes ratio` is the share of predicted "yes".

    Source: Li et al. 2023 (POPE).
    """
    answers = [_plain(a) for a in _ask(loaded, images, questions, max_new_tokens=4)]  # yes or no
    extras = {"yes ratio": float(np.mean([a == "yes" for a in answers]))}
    hits = [a == q.answer for a, q in zip(answers, questions, strict=True)]
    return mean("accuracy", hits, extras=extras, answers=answers)


def preference(loaded: LoadedModel, images: Images, pairs: Sequence[tuple[Question, str]]) -> Result:
    """Share of pairs where the true answer is strictly likelier than the hallucinated one."""
    prompts = [question.prompt for question, _ in pairs]
    chosen = score(loaded, images, prompts, [question.answer for question, _ in pairs])
    rejected = score(loaded, images, prompts, [wrong for _, wrong in pairs])
    return mean("truth preferred", chosen > rejected)


def _ask(loaded: LoadedModel, images: Images, questions: Sequence[Question], max_new_tokens: int) -> list[str]:
    return chat(loaded, images, [q.prompt for q in questions], max_new_tokens=max_new_tokens, batch_size=128)
