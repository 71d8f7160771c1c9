"""Control groups: caps, accounting, freezing and killing, on every version that a host may run.

`detect.open_cgroups` chooses the implementation of `base.Cgroups`: `unified` (v2), `hybrid` (limits on v1,
kill on v2), `legacy` (v1), or `unprivileged` where it was asked for. Nothing is imported here, because the
nursery needs only `base` and `kill`.
"""
