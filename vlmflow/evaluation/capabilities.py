"""What a model can do, one function a capability: a score for each example, on any set of pictures.

Every function takes the pictures apart from the questions, so that the same code measures the controls:
blank pictures, and every question with another question's picture.
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
from vlmflow.images.boxes import CANONICAL, CODECS, Box, corners
from vlmflow.inference.loading import Loaded, chat, classify, score, similarity

Images = Sequence[Image.Image]


@dataclass(frozen=True)
class Question:
    """One held-out question: its example's uid, the picture's size, the prompt and the true answer."""

    uid: str
    size: tuple[int, int]
    prompt: str
    answer: str


@dataclass
class Result:
    """Scores of a capability.

    The reported value is sum(score) / sum(weight), so that a corpus error rate is as easy as a mean. `gain`
    holds the same scores turned so that more is better, for pairing two models.
    """

    metric: str
    score: np.ndarray
    weight: np.ndarray
    higher_is_better: bool = True
    extras: dict[str, float] = field(default_factory=dict)
    answers: list[str] = field(default_factory=list)
    confusion: dict[str, Any] | None = None  # classes, and rows of counts: true class by guessed class

    @property
    def gain(self) -> np.ndarray:
        ratio = self.score / np.maximum(self.weight, 1e-9)
        return ratio if self.higher_is_better else -ratio


def mean(metric: str, score: Any, **more: Any) -> Result:
    score = np.asarray(score, float)
    return Result(metric, score, np.ones_like(score), **more)


def retrieval(loaded: Loaded, pictures: Images, captions: Sequence[str]) -> Result:
    """Recall@1 from picture to caption; a tie is a miss, and an equal caption elsewhere is a hit."""
    found = similarity(loaded, pictures, captions)
    same = np.array(captions)[:, None] == np.array(captions)[None, :]
    ranks = _ranks(found, same)
    back = _ranks(found.T, same)
    extras = {f"R@{k} {way}": float((r < k).mean()) for way, r in (("i2t", ranks), ("t2i", back)) for k in (1, 5, 10)}
    return mean(f"R@1 of {len(captions)}, image to text", ranks < 1, extras=extras)


def _ranks(similarity: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Place of the best right answer among the wrong ones, 0 for first; ties count against it."""
    right = np.where(same, similarity, -np.inf).max(1, keepdims=True)
    return ((similarity >= right - 1e-7) & ~same).sum(1)


def zero_shot(loaded: Loaded, pictures: Images, labels: Sequence[str]) -> Result:
    """Top-1 accuracy among the labels that the set holds."""
    classes = sorted(set(labels))
    guesses = classify(loaded, pictures, classes).argmax(1)
    hits = [classes[g] == label for g, label in zip(guesses, labels, strict=True)]
    return mean(f"top-1 of {len(classes)} classes", hits, confusion=_confusion(classes, labels, guesses))


def _confusion(classes: list[str], labels: Sequence[str], guesses: np.ndarray) -> dict[str, Any] | None:
    """How often each class was taken for each; None for more classes than a page can show."""
    if len(classes) > 50:
        return None
    rows = confusion_matrix(labels, [classes[g] for g in guesses], labels=classes)
    return {"classes": classes, "rows": rows.tolist()}


def captioning(loaded: Loaded, pictures: Images, questions: Sequence[Question]) -> Result:
    """chrF++ of a caption against the reference (Popović 2017, sacrebleu), 0 to 1."""
    answers = _ask(loaded, pictures, questions)
    chrf = CHRF(word_order=2)
    each = [chrf.sentence_score(a, [q.answer]).score / 100 for a, q in zip(answers, questions, strict=True)]
    return mean("chrF++", each, answers=answers)


def object_listing(
    loaded: Loaded, pictures: Images, questions: Sequence[Question], vocabulary: Sequence[str]
) -> dict[str, Result]:
    """Exact match of the list of objects, and CHAIR: captions that name an object that is not there.

    Source: Rohrbach et al. 2018 (CHAIR-s as the value, CHAIR-i beside it).
    """
    answers = _ask(loaded, pictures, questions)
    said = [objects.parse(answer, vocabulary) for answer in answers]
    true = [objects.parse(q.answer, vocabulary) for q in questions]
    invented = [sum(1 for category in s if category not in t) for s, t in zip(said, true, strict=True)]
    mentioned = sum(len(s) for s in said)
    chair_i = {"CHAIR-i": sum(invented) / mentioned if mentioned else 0.0, "objects mentioned": mentioned}
    exact = [a == q.answer for a, q in zip(answers, questions, strict=True)]
    return {
        "objects": mean("exact match", exact, answers=answers),
        "hallucination": mean(
            "CHAIR-s", [i > 0 for i in invented], higher_is_better=False, extras=chair_i, answers=answers
        ),
    }


def grounding(loaded: Loaded, pictures: Images, questions: Sequence[Question]) -> Result:
    """Acc@0.5 of the box for a referring expression; an answer that is no box is a miss and counted apart."""
    codec = CODECS[loaded.box_convention]
    answers = _ask(loaded, pictures, questions)
    overlaps, failures = [], 0
    for answer, question in zip(answers, questions, strict=True):
        found = codec.read(answer, *question.size)
        failures += found is None
        overlaps.append(0.0 if found is None else found.iou(true_box(question)))
    extras = {"mean IoU": float(np.mean(overlaps)), "parse failures": failures / len(questions)}
    return mean("Acc@0.5", [o >= 0.5 for o in overlaps], extras=extras, answers=answers)


def true_box(question: Question) -> Box:
    """The box of a grounding question's answer."""
    match = CANONICAL.search(question.answer)
    assert match is not None, f"{question.uid}: a grounding answer without a box"
    return corners(match, *question.size)


def text_recognition(loaded: Loaded, pictures: Images, questions: Sequence[Question]) -> dict[str, Result]:
    """Exact match of a line, and its character error rate (jiwer; micro: errors over characters, text as it is)."""
    answers = _ask(loaded, pictures, questions)
    counts = [jiwer.process_characters(q.answer, a) for a, q in zip(answers, questions, strict=True)]
    errors = np.array([c.substitutions + c.deletions + c.insertions for c in counts], float)
    lengths = np.array([max(1, len(q.answer)) for q in questions], float)
    exact = [a == q.answer for a, q in zip(answers, questions, strict=True)]
    return {
        "reading": mean("exact match", exact, answers=answers),
        "reading errors": Result("CER", errors, lengths, higher_is_better=False, answers=answers),
    }


def pope(loaded: Loaded, pictures: Images, questions: Sequence[Question]) -> Result:
    """Accuracy of yes-or-no polling; the yes-ratio is of predictions (POPE, Li et al. 2023)."""
    answers = [a.lower().strip(" .") for a in _ask(loaded, pictures, questions, max_new_tokens=4)]
    extras = {"yes ratio": float(np.mean([a == "yes" for a in answers]))}
    hits = [a == q.answer for a, q in zip(answers, questions, strict=True)]
    return mean("accuracy", hits, extras=extras, answers=answers)


def preference(loaded: Loaded, pictures: Images, pairs: Sequence[tuple[Question, str]]) -> Result:
    """Share of pairs where the truth is likelier than the hallucinated answer, strictly."""
    prompts = [question.prompt for question, _ in pairs]
    chosen = score(loaded, pictures, prompts, [question.answer for question, _ in pairs])
    rejected = score(loaded, pictures, prompts, [wrong for _, wrong in pairs])
    return mean("truth preferred", chosen > rejected)


def _ask(loaded: Loaded, pictures: Images, questions: Sequence[Question], max_new_tokens: int = 40) -> list[str]:
    return chat(loaded, pictures, [q.prompt for q in questions], max_new_tokens=max_new_tokens, batch_size=128)
