"""Policies of Ray Serve's autoscaling, which do not work yet: they can be imported, and say so when they are used."""

from headrace.serve.unsupported import unsupported_class, unsupported_function

replica_queue_length_autoscaling_policy = unsupported_function(
    "autoscaling_policy", "replica_queue_length_autoscaling_policy"
)
default_autoscaling_policy = unsupported_function("autoscaling_policy", "default_autoscaling_policy")
PrometheusQueryMixin = unsupported_class("autoscaling_policy", "PrometheusQueryMixin")
PrometheusSample = unsupported_class("autoscaling_policy", "PrometheusSample")
PrometheusScalar = unsupported_class("autoscaling_policy", "PrometheusScalar")
PrometheusVector = unsupported_class("autoscaling_policy", "PrometheusVector")

__all__ = [
    "PrometheusQueryMixin",
    "PrometheusSample",
    "PrometheusScalar",
    "PrometheusVector",
    "default_autoscaling_policy",
    "replica_queue_length_autoscaling_policy",
]
