"""Two models trained at the same time: the smallest useful program.

It runs unchanged on this machine alone, and on a cluster when ``CLUSTER_ADDRESS`` names one.
"""

from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

import concurrent_ml as cml

X, y = load_iris(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.3)

cml.init()


@cml.remote
def train_random_forest(X_train, y_train):  # noqa: ANN001, ANN201, N803
    model = RandomForestClassifier()
    model.fit(X_train, y_train)
    return model


@cml.remote
def train_svc(X_train, y_train):  # noqa: ANN001, ANN201, N803
    model = SVC()
    model.fit(X_train, y_train)
    return model


# Both start now ...
forest_future = train_random_forest.remote(X_train, y_train)
svc_future = train_svc.remote(X_train, y_train)

# ... and are awaited here.
forest = cml.get(forest_future)
svc = cml.get(svc_future)

print(f"forest {forest.score(X_test, y_test):.2f}, SVC {svc.score(X_test, y_test):.2f}")
print("Models trained concurrently!")
