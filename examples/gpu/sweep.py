"""How wide should a network be that reads handwritten digits, and how fast may it learn? 24 networks, a GPU slot each.

    python sweep.py                          here, on the GPUs that are free, or on a core
    mpirun -n 2 python sweep.py              on two ranks, which divide the GPUs of their node
    sbatch sweep.sbatch                      on Slurm
    PER_GPU=4 python sweep.py                four networks on a GPU at a time: these are small

With torch the networks learn on GPUs where there are any, else on cores. Without torch numpy trains the same networks:
it does not round alike, so results of the two are kept apart. The table goes to sweep.csv; `ezpyp summary sweep_cache`
tells which GPU each network had, the memory that it took there and how busy it kept it.
"""

import os
from importlib.util import find_spec

import numpy as np
from sklearn.datasets import load_digits

import ezpyp
from ezpyp import Pipeline, as_json_step

#: Networks that share a GPU.
PER_GPU = int(os.environ.get("PER_GPU", "1"))
EPOCHS = int(os.environ.get("EPOCHS", "40"))
BATCH = 64


def gpus_here():
    """Whether there are GPUs that torch can use. ezpyp has it ask NVML, so this does not start CUDA before the fork."""
    if not find_spec("torch"):
        return False
    import torch

    return torch.cuda.is_available()


def read():
    """Pictures to learn from, their digits, and the same to test with."""
    digits = load_digits()
    order = np.random.default_rng(1).permutation(len(digits.target))
    pictures, labels = digits.images.reshape(-1, 64)[order].astype(np.float32) / 16, digits.target[order]
    return pictures[360:], labels[360:], pictures[:360], labels[:360]


# Read once by each rank, before the processes that run steps are forked.
data = ezpyp.preload(read)
pipeline = Pipeline("sweep_cache", "sweep")


@as_json_step(pipeline, gpus=1 / PER_GPU if gpus_here() else 0)
def train(backend, width, rate, epochs):
    """One network. Those of one width begin with the same weights and see the pictures in the same order."""
    random = np.random.default_rng(width)
    weights = [
        random.normal(0, (2 / 64) ** 0.5, (64, width)).astype(np.float32),
        random.normal(0, (1 / width) ** 0.5, (width, 10)).astype(np.float32),
    ]
    batches = [random.permutation(len(data()[0])) for _ in range(epochs)]
    device, guessed = learn(weights, batches, rate)
    return {"device": device, "right": int((guessed == data()[3]).sum()), "of": len(guessed)}


def with_torch(weights, batches, rate):
    """What it learned on, and what it reads in the test pictures."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pictures, labels, test, _ = (torch.from_numpy(np.array(each)).to(device) for each in data())
    first, last = (torch.from_numpy(each).to(device).requires_grad_() for each in weights)
    optimizer = torch.optim.SGD([first, last], lr=rate)
    for order in batches:
        for batch in torch.from_numpy(order).to(device).split(BATCH):
            loss = torch.nn.functional.cross_entropy((pictures[batch] @ first).relu() @ last, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        guessed = ((test @ first).relu() @ last).argmax(1)
    return torch.cuda.get_device_name() if device == "cuda" else "cores", guessed.cpu().numpy()


def with_numpy(weights, batches, rate):
    """The same by hand."""
    first, last = weights
    pictures, labels, test, _ = data()
    for order in batches:
        for batch in np.split(order, range(BATCH, len(order), BATCH)):
            hidden = np.maximum(pictures[batch] @ first, 0)
            scores = hidden @ last
            error = np.exp(scores - scores.max(1, keepdims=True))
            error /= error.sum(1, keepdims=True)
            error[range(len(batch)), labels[batch]] -= 1
            back = (error @ last.T) * (hidden > 0)
            last -= rate / len(batch) * hidden.T @ error
            first -= rate / len(batch) * pictures[batch].T @ back
    return "cores", (np.maximum(test @ first, 0) @ last).argmax(1)


backend, learn = ("torch", with_torch) if find_spec("torch") else ("numpy", with_numpy)
widths, rates = [8, 16, 32, 64, 128, 256], [0.01, 0.03, 0.1, 0.3]
train.product(backend=[backend], width=widths, rate=rates, epochs=[EPOCHS])
pipeline.execute()

if pipeline.is_root:
    table = ezpyp.open("sweep_cache").table("train", backend=backend, epochs=EPOCHS)
    table[["backend", "width", "rate", "right", "of", "device"]].to_csv("sweep.csv", index=False)
    best = table.sort_values("right", kind="stable").iloc[-1]
    print(
        f"Best of {len(table)} by {backend}: width {best['width']}, rate {best['rate']} "
        f"reads {best['right']} of {best['of']} digits, on {best['device']}."
    )
