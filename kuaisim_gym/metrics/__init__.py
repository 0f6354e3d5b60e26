"""Metrics of finished sessions: pure functions of arrays.

``docs/metrics.md`` defines the metrics of exposure and shows where they disagree.
"""

from kuaisim_gym.metrics.audit import (
    EXPOSURE_METRICS,
    Audit,
    ExposureMetric,
    Merit,
    group_target,
    relevance,
    summarise_exposure,
)
from kuaisim_gym.metrics.exposure import (
    absolute_difference,
    attention,
    coverage,
    entropy,
    exposure_counts,
    gini,
    group_difference,
    group_divergence,
    group_shares,
    jain_index,
    longtail_share,
    novelty,
    self_information,
    slate_absolute_difference,
    slate_unfairness,
)
from kuaisim_gym.metrics.lists import (
    REQUESTS,
    average_list_reward,
    intra_list_diversity,
    max_list_reward,
    retention,
    return_time,
    reward_mrr,
    reward_ndcg,
)
from kuaisim_gym.metrics.merit import (
    envy,
    equal_exposure,
    expected_exposure,
    exposure_over_merit,
    inequity,
)
from kuaisim_gym.metrics.sessions import (
    BoolArray,
    FloatArray,
    Sessions,
    bootstrap_ci95,
    penalty_rate,
    reward_per_session,
    reward_per_step,
    session_length,
)
from kuaisim_gym.metrics.summaries import (
    each_session,
    summarise,
    summarise_requests,
    summarise_retention,
)
from kuaisim_gym.metrics.users import (
    CLASSES,
    log_rows,
    popular_taste,
    summarise_users,
    user_classes,
    worst_mean,
)

__all__ = [
    "CLASSES", "EXPOSURE_METRICS", "REQUESTS", "Audit", "BoolArray", "ExposureMetric", "FloatArray",
    "Merit", "Sessions", "absolute_difference", "attention", "average_list_reward",
    "bootstrap_ci95", "coverage", "each_session", "entropy", "envy", "equal_exposure",
    "expected_exposure", "exposure_counts", "exposure_over_merit", "gini", "group_difference",
    "group_divergence", "group_shares", "group_target", "inequity", "intra_list_diversity",
    "jain_index", "log_rows", "longtail_share", "max_list_reward", "novelty", "penalty_rate",
    "popular_taste", "relevance", "retention", "return_time", "reward_mrr", "reward_ndcg",
    "reward_per_session", "reward_per_step", "self_information", "session_length",
    "slate_absolute_difference", "slate_unfairness", "summarise", "summarise_exposure",
    "summarise_requests", "summarise_retention", "summarise_users", "user_classes", "worst_mean",
]  # fmt: skip
