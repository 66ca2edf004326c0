"""Which classifier reads handwritten digits best, and with which settings? One script, 75 steps, one report.

The data are the 1,797 images of 8x8 pixels that scikit-learn ships. A quarter of them is set aside. On the
rest, 69 settings of four kinds of classifier are compared by cross-validation, one step each. The best is
fitted again and reads the images set aside.

    python digits.py
    mpirun -n 2 python digits.py

Results are kept in digits_cache/: a second run takes them from there. The report goes to digits_report/.
"""

import io
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import StratifiedKFold, cross_val_score, train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from ezpyp import Pipeline, as_pickle_step

SEED = 20
REPORT = Path("digits_report")

CLASSIFIERS = {
    "neighbours": KNeighborsClassifier,
    "support vectors": SVC,
    "random forest": partial(RandomForestClassifier, random_state=SEED, n_jobs=1),
    "logistic regression": partial(LogisticRegression, max_iter=2000),
}

pipeline = Pipeline("digits_cache", "digits")


# 1. The data.


@as_pickle_step(pipeline)
def load():
    digits = load_digits()
    return {"images": digits.images / 16, "labels": digits.target}


@as_pickle_step(pipeline)
def split(data, held_out, seed):
    """Two sets of images: one to choose the classifier with, one that only the chosen one will see."""
    parts = train_test_split(
        data["images"], data["labels"], test_size=held_out, stratify=data["labels"], random_state=seed
    )
    return {
        "training": {"images": parts[0], "labels": parts[2]},
        "test": {"images": parts[1], "labels": parts[3]},
    }


sets = split(data=load(), held_out=0.25, seed=SEED)


# 2. The search: a step for every setting of every classifier.


def pixels(images):
    return images.reshape(len(images), -1)


def cross_validate(kind, sets, **settings):
    folds = StratifiedKFold(5, shuffle=True, random_state=SEED)
    training = sets["training"]
    accuracy = cross_val_score(
        CLASSIFIERS[kind](**settings), pixels(training["images"]), training["labels"], cv=folds, n_jobs=1
    )
    mean, spread = float(accuracy.mean()), float(accuracy.std())
    return {"kind": kind, "settings": settings, "mean": mean, "spread": spread}


@as_pickle_step(pipeline)
def neighbours(n_neighbors, weights, sets):
    return cross_validate("neighbours", sets, n_neighbors=n_neighbors, weights=weights)


@as_pickle_step(pipeline)
def support_vectors(C, gamma, sets):
    return cross_validate("support vectors", sets, C=C, gamma=gamma)


@as_pickle_step(pipeline)
def random_forest(trees, features, leaf, sets):
    return cross_validate("random forest", sets, n_estimators=trees, max_features=features, min_samples_leaf=leaf)


@as_pickle_step(pipeline)
def logistic_regression(C, sets):
    return cross_validate("logistic regression", sets, C=C)


scores = (
    neighbours.product(n_neighbors=range(1, 13), weights=["uniform", "distance"], sets=[sets])
    + support_vectors.product(C=[0.3, 1, 3, 10, 30], gamma=[0.01, 0.03, 0.1, 0.3, 1], sets=[sets])
    + random_forest.product(trees=[20, 60], features=["sqrt", 0.25], leaf=[1, 2, 4], sets=[sets])
    + logistic_regression.product(C=[0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30], sets=[sets])
)


# 3. The choice, and what it is worth.


@as_pickle_step(pipeline)
def rank(scores):
    """Best first; of equals, the one that was listed first."""
    return sorted(scores, key=lambda score: -score["mean"])


@as_pickle_step(pipeline)
def read(leaderboard, sets):
    """Fit the best on all the training images and let it read the images that were set aside."""
    best, training, test = leaderboard[0], sets["training"], sets["test"]
    classifier = CLASSIFIERS[best["kind"]](**best["settings"])
    classifier.fit(pixels(training["images"]), training["labels"])
    return {"truth": test["labels"], "answer": classifier.predict(pixels(test["images"]))}


leaderboard = rank(scores=scores)
reading = read(leaderboard=leaderboard, sets=sets)


# 4. Two pictures, as the bytes of PNG files.


def png(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    return file.getvalue()


@as_pickle_step(pipeline)
def confusion(reading):
    counts = confusion_matrix(reading["truth"], reading["answer"])
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="read as", ylabel="is", xticks=range(10), yticks=range(10))
    axes.imshow(np.sqrt(counts), cmap="Blues")
    for (truth, answer), count in np.ndenumerate(counts):
        if count:
            color = "white" if count > 20 else "black"
            axes.text(answer, truth, count, ha="center", va="center", color=color)
    return png(figure)


@as_pickle_step(pipeline)
def gallery(reading, sets, columns=4):
    """The images that were misread, each with what it is and what it was taken for."""
    wrong = np.flatnonzero(reading["truth"] != reading["answer"])
    rows = max(1, -(-len(wrong) // columns))
    figure = Figure(figsize=(1.5 * columns, 1.8 * rows), layout="constrained")
    for place, index in enumerate(wrong, 1):
        axes = figure.add_subplot(rows, columns, place)
        axes.imshow(sets["test"]["images"][index], cmap="gray_r")
        axes.set_title(f"{reading['truth'][index]} read as {reading['answer'][index]}", fontsize=9)
        axes.set_axis_off()
    return png(figure)


confusion_matrix_png = confusion(reading=reading)
gallery_png = gallery(reading=reading, sets=sets)


# 5. Run, then write the report from the results, on one rank.


def markdown(leaderboard, reading):
    best = leaderboard[0]
    right, of = int((reading["truth"] == reading["answer"]).sum()), len(reading["truth"])
    verdict = (
        f"The best of {len(leaderboard)} settings is **{best['kind']}** ({words(best['settings'])}), right on"
        f" {best['mean']:.1%} of the images in cross-validation. Of the {of} images set aside it reads"
        f" **{right} right ({right / of:.1%})**."
    )
    lines = [
        "# Handwritten digits: which classifier?",
        "",
        verdict,
        "",
        "| place | classifier | settings | accuracy | ± |",
        "|------:|------------|----------|---------:|--:|",
    ]
    shown = set()
    for place, score in enumerate(leaderboard, 1):
        if place <= 10 or score["kind"] not in shown:
            lines.append(
                f"| {place} | {score['kind']} | {words(score['settings'])}"
                f" | {score['mean']:.2%} | {score['spread']:.2%} |"
            )
        shown.add(score["kind"])
    lines += [
        "",
        "The first ten, and the best of each kind.",
        "",
        "## What it read",
        "",
        "![Confusion matrix](confusion.png)",
        "",
        "## What it misread",
        "",
        "![The images that were misread](misread.png)",
        "",
    ]
    return "\n".join(lines)


def words(settings):
    return ", ".join(f"{name} {value}" for name, value in settings.items())


pipeline.initialize_schema()
pipeline.execute()

if pipeline.is_root:
    REPORT.mkdir(exist_ok=True)
    (REPORT / "confusion.png").write_bytes(confusion_matrix_png.result())
    (REPORT / "misread.png").write_bytes(gallery_png.result())
    (REPORT / "report.md").write_text(markdown(leaderboard.result(), reading.result()), encoding="utf-8")
    print(f"Report: {REPORT / 'report.md'}")
