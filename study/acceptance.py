"""What a base of the second study must show before any arm is trained on it.

The mechanism needs four things: a detector that works under the authors' views, errors that are the eyes', a blank picture
that says nothing, and pictures whose mean colour says nothing.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cppo_ref.evaluation import completion_labels, correctness, sample_answers
from cppo_ref.runs.detector import evaluate_detector
from cppo_ref.vlm.policy import Policy
from study.worlds import WORLDS
from study.worlds.rows import under_blank_views, under_trained_views, under_unseen_views, world_rows

Rows = Sequence[dict[str, Any]]
IMAGES = 300  # validation rows: nothing of a base is chosen on test pictures
PROBE_ROWS = 2000
MARGIN = 0.05  # "no better than the constant": less than this above it


@dataclass(frozen=True)
class Acceptance:
    """The numbers that decide; shares in [0, 1]."""

    detector: float  # AUROC of ΔH for the true perception tokens under noise patches, strength 1
    greedy: float
    avg_at_8: float
    trained_greedy: float  # under the view families that CPPO trains with
    unseen_greedy: float  # under those that nothing was trained with
    wrong_percept: float  # of the wrong greedy answers, the share whose completion misreads the picture
    blank: float  # greedy, one grey for every picture
    constant: float  # the best constant answer to each kind of question, same rows
    mean_colour: float  # what a linear read-out of the picture's mean colour gains over a constant; cross-validated
    perception_share: float  # perception tokens of the completions

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Acceptance":
        """From a row of acceptance.csv."""
        return cls(**{field.name: float(row[field.name]) for field in fields(cls)})

    def failures(self) -> list[str]:
        """What is not as the protocol asks, in words; empty if the base is accepted."""
        checks = [
            (self.detector >= 0.90, f"the detector's AUROC is {self.detector:.2f}, at least 0.90 is asked"),
            (0.4 <= self.greedy <= 0.7, f"greedy accuracy is {self.greedy:.2f}, 0.4 to 0.7 is asked"),
            (self.wrong_percept >= 0.6, f"{self.wrong_percept:.2f} of the errors are the eyes', at least 0.60 is asked"),
            (self.blank <= self.constant + MARGIN, f"blank pictures score {self.blank:.2f}, a constant {self.constant:.2f}"),
            (
                self.mean_colour <= MARGIN,
                f"mean colours gain {self.mean_colour:.2f} over a constant, at most {MARGIN} is asked",
            ),
            (self.perception_share <= 0.35, f"{self.perception_share:.2f} of the tokens are perception, at most 0.35 is asked"),
        ]
        return [words for ok, words in checks if not ok]


def accept(policy: Policy, world: str, seed: int = 0) -> Acceptance:
    """Measure a base on validation rows of its world."""
    rows = world_rows(WORLDS[world], "validation", IMAGES)
    answers = sample_answers(policy, rows, samples=1, temperature=0)
    right = correctness(answers).flatten() > 0
    labels = [tokens for rollouts in answers for tokens in completion_labels(policy, rollouts)]
    misread = np.array([any(label.kind == "perception" and not label.right for label in tokens) for tokens in labels])
    kinds = Counter(label.kind for tokens in labels for label in tokens)
    everything = world_rows(WORLDS[world], "train", PROBE_ROWS)
    return Acceptance(
        detector=evaluate_detector(policy, rows, removing=["noise_patches"], seed=seed).auroc_absolute,
        greedy=float(right.mean()),
        avg_at_8=float(correctness(sample_answers(policy, rows, samples=8, seed=seed)).mean()),
        trained_greedy=_greedy(policy, under_trained_views(WORLDS[world], rows)),
        unseen_greedy=_greedy(policy, under_unseen_views(rows)),
        wrong_percept=float(misread[~right].mean()) if (~right).any() else float("nan"),
        blank=_greedy(policy, under_blank_views(rows)),
        constant=constant_score(rows),
        mean_colour=mean_colour_score(everything) - constant_score(everything),
        perception_share=kinds["perception"] / kinds.total(),
    )


def _greedy(policy: Policy, rows: Rows) -> float:
    return float(correctness(sample_answers(policy, rows, samples=1, temperature=0)).mean())


def constant_score(rows: Rows) -> float:
    """The share of rows that the best constant answer to each kind of question gets right."""
    return _over_kinds(rows, lambda _, answers: np.full(len(answers), Counter(answers.tolist()).most_common(1)[0][0]))


def mean_colour_score(rows: Rows) -> float:
    """The share that a logistic regression on the mean colour and the question's words gets right, cross-validated."""
    words = sorted({word for row in rows for word in row["question"].split()})

    def predict(part: Rows, answers: np.ndarray) -> np.ndarray:
        colour = np.array([np.asarray(row["image"], dtype=float).mean((0, 1)) for row in part])
        asked = np.array([[word in row["question"].split() for word in words] for row in part], dtype=float)
        features = np.concatenate([asked, colour, (asked[:, :, None] * colour[:, None, :]).reshape(len(part), -1)], axis=1)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
        return np.asarray(cross_val_predict(model, features, answers, cv=4))

    return _over_kinds(rows, predict)


def _over_kinds(rows: Rows, predict: Any) -> float:
    """Accuracy of `predict(rows, answers)`, taken apart for each kind of question (its last word)."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        kinds.setdefault(row["question"].split()[-1], []).append(row)
    hits = 0
    for part in kinds.values():
        answers = np.array([row["answer"] for row in part])
        hits += int((predict(part, answers) == answers).sum())
    return hits / len(rows)
