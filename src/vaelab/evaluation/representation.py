"""Probes that predict the class from the code: trained on codes of training images, scored on test images.

Codes are posterior means. The linear probe is multinomial logistic regression on standardised codes. The neighbours and
the silhouette use codes that are not standardised, so collapsed units have no weight. The silhouette is
(b - a) / max(a, b), with mean distances a to the code's class and b to the nearest other class: Rousseeuw 1987,
https://doi.org/10.1016/0377-0427(87)90125-7
"""

from torch import Tensor


def representation(codes: Tensor, labels: Tensor, test_codes: Tensor, test_labels: Tensor) -> dict[str, float]:
    """`linear_accuracy` and `knn_accuracy` (5 neighbours), in [0, 1], on test codes (M, D), trained on codes (N, D).

    `silhouette` is in [-1, 1] and uses at most 2,000 test codes. If there is only one class, metrics are absent.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import silhouette_score
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y, test_x, test_y = (part.cpu().numpy() for part in (codes, labels, test_codes, test_labels))
    metrics = {}
    if len(set(y)) > 1:
        linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x, y)
        neighbours = KNeighborsClassifier(min(5, len(x))).fit(x, y)
        metrics["linear_accuracy"] = float(linear.score(test_x, test_y))
        metrics["knn_accuracy"] = float(neighbours.score(test_x, test_y))
    every = -(-len(test_x) // 2000)
    some_x, some_y = test_x[::every], test_y[::every]
    if 1 < len(set(some_y)) < len(some_y):
        metrics["silhouette"] = float(silhouette_score(some_x, some_y))
    return metrics
