"""The names of 2020 and 2021: backends and endpoints, and deployments that are deployed by themselves.

In: code that was written for them. Out: revisions and traffic, by the operations that the present names have too.
"""
