"""A hyperparameter sweep: scikit-learn fits on the digits, each a task. Prints a digest of every score."""

import hashlib
import json
import sys

import concurrent_ml as cml

FITS = int(sys.argv[1]) if len(sys.argv) > 1 else 300

cml.init(log_to_driver=False)


@cml.remote(max_retries=-1)
def fit(data, depth: int, leaves: int, seed: int):
    from sklearn.tree import DecisionTreeClassifier

    images, labels = data
    half = len(images) // 2
    model = DecisionTreeClassifier(max_depth=depth, max_leaf_nodes=leaves, random_state=seed)
    model.fit(images[:half], labels[:half])
    return depth, leaves, seed, model.score(images[half:], labels[half:])


@cml.remote(max_retries=-1)
def load():
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)


data = load.remote()
settings = [(2 + n % 10, 8 + n % 30, n) for n in range(FITS)]
scores = cml.get([fit.remote(data, *setting) for setting in settings])
print(hashlib.sha256(json.dumps(scores).encode()).hexdigest())
