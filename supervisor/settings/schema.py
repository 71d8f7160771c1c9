"""The settings: every one with its type, default, range, unit and explanation in one place.

`convert` checks a document against these structs, `render` prints them and `document` writes the reference
page from them, so that the three cannot disagree. Numbers are those of the design unless a comment says
otherwise. An empty string as a default means *automatic*: `places.resolve` fills it in for this host.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct, field

from garrison.ipc.messages import LogLevel

BUILTIN_WORKERS: Final[tuple[str, ...]] = ("process", "files")
"""Detection workers that come with the agent; they run where the file has no ``[workers]`` table."""

LEVEL_SYNONYMS: Final[dict[str, LogLevel]] = {
    "information": "info",
    "warn": "warning",
    "error": "err",
    "critical": "crit",
    "panic": "emerg",
    "emergency": "emerg",
}

USER_PATTERN: Final = r"^([A-Za-z0-9_][A-Za-z0-9_.-]*[$]?)?$"
WORKER_NAME_PATTERN: Final = r"^[a-z][a-z0-9_-]{0,31}$"
MAX_WORKERS: Final = 64

MIB: Final = 1024 * 1024
GIB: Final = 1024 * MIB

BYTES: Final = "bytes"
SECONDS: Final = "seconds"
PERCENT: Final = "percent of one core"

# The kernel grants at least 1 ms of CPU time in a period of 100 ms, so less than 1 % cannot be enforced.
# The upper bound of four cores is no limit of the kernel's: an agent that needs more is the wrong agent.
Quota = Annotated[float, Meta(ge=1, le=400, extra={"unit": PERCENT})]
Path = Annotated[str, Meta(max_length=4096, extra={"form": "path"})]


class AggregateBudget(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The caps of all workers together, enforced by the kernel on the node above them."""

    cpu_quota_percent: Annotated[
        Quota,
        Meta(description="Hard CPU cap of all workers together; the kernel stops them for the rest of a period."),
    ] = 20.0
    memory_max: Annotated[
        int,
        Meta(
            ge=32 * MIB,
            le=64 * GIB,
            description="Hard memory cap of all workers together, swap included. The agent acts before that.",
            extra={"unit": BYTES},
        ),
    ] = 256 * MIB


class Pressure(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When the agent gives way to its host. Everything is measured without the agent's own part.

    Workers are frozen, and ended where memory is low, from the lowest `priority` up, essential ones last.
    """

    cpu_percent: Annotated[
        float,
        Meta(
            ge=1,
            le=100,
            description="CPU time that others use, of all CPUs, above which workers are frozen; 100: never.",
            extra={"unit": "percent of all CPUs"},
        ),
    ] = 90.0
    io_percent: Annotated[
        float,
        Meta(
            ge=1,
            le=100,
            description="Time in which all that has work to do waits for block I/O above which workers are frozen; "
            "100: never.",
            extra={"unit": "percent of time"},
        ),
    ] = 60.0
    memory_percent: Annotated[
        float,
        Meta(
            ge=1,
            le=100,
            description="Time in which others wait for memory above which workers are frozen; 100: never.",
            extra={"unit": "percent of time"},
        ),
    ] = 20.0
    available_min: Annotated[
        int,
        Meta(
            ge=0,
            le=64 * GIB,
            description="Available memory of the host below which workers are ended, one priority after the other. "
            "At most a tenth of the host's memory counts; 0: never.",
            extra={"unit": BYTES},
        ),
    ] = 128 * MIB
    above_seconds: Annotated[
        float,
        Meta(ge=0.5, le=3600, description="How long it must be above for the first freeze.", extra={"unit": SECONDS}),
    ] = 10.0
    below_seconds: Annotated[
        float,
        Meta(
            ge=0.5,
            le=3600,
            description="How long all must be below half of their bounds for the first thaw, and memory be ample "
            "for a new start.",
            extra={"unit": SECONDS},
        ),
    ] = 30.0
    sample_seconds: Annotated[
        float, Meta(ge=0.1, le=60, description="Time between two looks at the host.", extra={"unit": SECONDS})
    ] = 2.0
    minimum_duty_percent: Annotated[
        float,
        Meta(
            ge=0,
            le=50,
            description="Share of the time in which a worker that is frozen for the host's sake runs all the same, in "
            "turns of 20 s, so that the host is never wholly unwatched.",
            extra={"unit": "percent of time"},
        ),
    ] = 5.0


class OwnShare(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What master and nursery may use themselves. Above it for 15 s they do less, step by step, and say so."""

    cpu_percent: Annotated[
        float,
        Meta(ge=1, le=400, description="CPU use of master and nursery together.", extra={"unit": PERCENT}),
    ] = 10.0
    memory: Annotated[
        int,
        Meta(
            ge=16 * MIB,
            le=16 * GIB,
            description="Memory of master and nursery together, without what is shared with files.",
            extra={"unit": BYTES},
        ),
    ] = 128 * MIB


class Budget(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one worker may use. Caps are the kernel's; the trip values end a worker that stays above them."""

    cpu_quota_percent: Annotated[
        Quota,
        Meta(description="Hard CPU cap. The kernel stops the worker for the rest of a period; nothing else happens."),
    ] = 10.0
    cpu_trip_percent: Annotated[
        float,
        Meta(
            ge=0.5,
            le=400,
            description="CPU use that breaks the budget when it lasts; at most `cpu_quota_percent`. The first time the "
            "worker is throttled to half of this for 60 s and told to do less; if that does not help, it is tripped.",
            extra={"unit": PERCENT},
        ),
    ] = 5.0
    cpu_trip_samples: Annotated[
        int,
        Meta(
            ge=1,
            le=1000,
            description="How many samples in a row must be above `cpu_trip_percent`. As many above `memory_high`, near "
            "`nofile`, or with more than twice `events_per_second` trip the worker.",
        ),
    ] = 12
    sample_seconds: Annotated[
        float,
        Meta(ge=0.1, le=300, description="Time between two looks at the worker's usage.", extra={"unit": SECONDS}),
    ] = 5.0
    cpu_weight: Annotated[
        int,
        Meta(
            ge=1,
            le=10000,
            description="Share of the CPU among the workers when it is short; 100 is the kernel's own default. An "
            "essential worker has ten times of it.",
        ),
    ] = 100
    memory_high: Annotated[
        int,
        Meta(
            ge=4 * MIB,
            le=16 * GIB,
            description="Memory above which the kernel reclaims and slows the worker down; at most `memory_max`. A "
            "worker whose own memory (no page cache) stays above it for `cpu_trip_samples` samples is tripped.",
            extra={"unit": BYTES},
        ),
    ] = 64 * MIB
    memory_max: Annotated[
        int,
        Meta(
            ge=4 * MIB,
            le=16 * GIB,
            description="Hard memory cap, swap included. Above it the kernel kills the worker.",
            extra={"unit": BYTES},
        ),
    ] = 96 * MIB
    pids_max: Annotated[
        int,
        Meta(
            ge=1,
            le=4096,
            description="Most processes and threads; a fork beyond it fails in the worker. One that goes on trying in "
            "three samples in a row is tripped.",
        ),
    ] = 32
    nofile: Annotated[
        int,
        Meta(
            ge=16,
            le=65536,
            description="Most open file descriptors of a process. At 90 % of it for `cpu_trip_samples` samples the "
            "worker is tripped.",
        ),
    ] = 256
    events_per_second: Annotated[
        float,
        Meta(
            ge=1,
            le=100_000,
            description="Events taken from the worker, on average; a burst of `events_burst_seconds` times as many "
            "passes, what is above is dropped and counted. Alerts and states come first: events and metrics get what "
            "these leave.",
            extra={"unit": "events per second"},
        ),
    ] = 1000.0
    events_burst_seconds: Annotated[
        float,
        Meta(
            ge=0.1,
            le=60,
            description="The largest burst of events, as the time in which so many may come at `events_per_second`. A "
            "frame is taken whole while anything is left.",
            extra={"unit": SECONDS},
        ),
    ] = 5.0
    beat_seconds: Annotated[
        float,
        Meta(
            ge=0.1,
            le=60,
            description="Time between two signs of life. A worker that gives none for three of them, counting only "
            "time in which it could run, is tripped.",
            extra={"unit": SECONDS},
        ),
    ] = 5.0
    force: Annotated[
        bool,
        Meta(
            description="What happens when a smaller `memory_max` does not hold what the running worker uses: false "
            "refuses it and the old one stays, true trips the worker, which starts again under the new one."
        ),
    ] = False
    dry_run: Annotated[
        bool,
        Meta(
            description="Whether what the breaker would do to this worker is only reported. Its caps hold all the "
            "same, and what has ended by itself, or broken the contract of its pipes, still waits for its next start."
        ),
    ] = False


class Agent(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The agent itself: who it is, where it keeps its files, and the caps of everything below it."""

    hostname: Annotated[
        str,
        Meta(
            description="The name of this host in the store and in events.",
            extra={"restart": True, "form": "hostname", "automatic": "the machine's host name"},
        ),
    ] = ""
    groups: Annotated[
        tuple[
            Annotated[
                str,
                Meta(
                    pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$",
                    extra={"pattern_help": "up to 63 letters, digits, `.`, `_`, `-`, starting with a letter or digit"},
                ),
            ],
            ...,
        ],
        Meta(
            max_length=32,
            description="Groups of this host. A setting for an earlier group wins over one for a later group.",
            extra={"unique": True},
        ),
    ] = ()
    prefix: Annotated[
        str,
        Meta(
            max_length=256,
            pattern=r"^(/[A-Za-z0-9._-]+)+$",
            description="What all keys in the store begin with.",
            extra={
                "restart": True,
                "pattern_help": "a path such as `/hids`: starts with `/` and does not end with one",
            },
        ),
    ] = "/hids"
    state_dir: Annotated[
        Path,
        Meta(
            description="State that survives a restart: the cached configuration, the breakers, the spool.",
            extra={
                "restart": True,
                "automatic": "`/var/lib/garrison`; not root: `$XDG_STATE_HOME/garrison` or `~/.local/state/garrison`",
            },
        ),
    ] = ""
    worker_user: Annotated[
        str,
        Meta(
            max_length=64,
            pattern=USER_PATTERN,
            description="The user that workers run as, of /etc/passwd. `root` leaves them the agent's own, without its "
            "capabilities all the same.",
            extra={
                "pattern_help": "a user's name",
                "automatic": "`garrison-worker` where there is one, else the agent's own; not root: the agent's own",
            },
        ),
    ] = ""
    run_dir: Annotated[
        Path,
        Meta(
            description="Where the lock and the control socket are.",
            extra={
                "restart": True,
                "automatic": "`/run/garrison`; not root: `$XDG_RUNTIME_DIR/garrison` or `run` below the state folder",
            },
        ),
    ] = ""
    log_dir: Annotated[
        Path,
        Meta(
            description="Where the agent's own log and the file sink's events are written.",
            extra={"restart": True, "automatic": "`/var/log/garrison`; not root: `log` below the state folder"},
        ),
    ] = ""
    cgroup_mode: Annotated[
        Literal["auto", "unified", "hybrid", "legacy", "unprivileged"],
        Meta(
            description="How caps are enforced. `auto` takes what the host has and refuses to start where "
            "the kernel cannot enforce them. `unprivileged` (resource limits, polling) has to be asked for, because it "
            "cannot hold a worker to its caps.",
            extra={"restart": True},
        ),
    ] = "auto"
    cgroup_root: Annotated[
        str,
        Meta(
            max_length=256,
            pattern=r"^((/[A-Za-z0-9._@:-]+)+)?$",
            description="The agent's node in the cgroup hierarchies, such as `/garrison`.",
            extra={
                "restart": True,
                "pattern_help": "a path inside the hierarchies, such as `/garrison`",
                "form": "cgroup",
                "automatic": "what systemd delegated to the unit, else `/garrison`",
            },
        ),
    ] = ""
    killswitch_file: Annotated[
        Path,
        Meta(
            description="All workers are dead while this file exists, whatever the store says.",
            extra={
                "restart": True,
                "automatic": "`/etc/garrison/killswitch`; not root: `$XDG_CONFIG_HOME/garrison/killswitch` "
                "or `~/.config/garrison/killswitch`",
            },
        ),
    ] = ""
    release_spread_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=3600,
            description="After the killswitch is released the hosts of a fleet start again spread over this time. "
            "Engaging is never spread.",
            extra={"unit": SECONDS},
        ),
    ] = 60.0
    stop_grace_seconds: Annotated[
        float,
        Meta(
            ge=0.1,
            le=60,
            description="How long a worker may take to stop in good order before it is killed.",
            extra={"unit": SECONDS},
        ),
    ] = 3.0
    alivehost_key: Annotated[
        bool,
        Meta(
            description="Whether the etcd store also gets the key `<prefix>/alivehost/HOSTNAME--IP` of an older "
            "layout, with the local time, for those who still read it. It is written with every renewal of the lease: "
            "a write a host in 20 s, where an agent otherwise writes nothing while nothing changes.",
            extra={"restart": True},
        ),
    ] = False
    dry_run: Annotated[
        bool,
        Meta(
            description="Whether throttling, tripping and giving way to the host are only reported, for all workers. "
            "Caps hold all the same."
        ),
    ] = False
    budget: Annotated[AggregateBudget, Meta(description="Caps of all workers together.")] = AggregateBudget()
    pressure: Annotated[Pressure, Meta(description="When the agent gives way to its host.")] = Pressure()
    own: Annotated[OwnShare, Meta(description="What the agent may use without its workers.")] = OwnShare()


class Worker(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One worker process. `NAME` is up to 32 lower-case letters, digits, `_` and `-`, a letter first."""

    modules: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=4096)], ...],
        Meta(
            max_length=16,
            description='Detection modules of this process: a built-in\'s name, `"package.module:Class"` or '
            '`"/path/file.py:Class"`.',
            extra={"unique": True, "automatic": "the built-in of the worker's name"},
        ),
    ] = ()
    command: Annotated[
        tuple[Annotated[str, Meta(max_length=4096)], ...],
        Meta(
            max_length=256,
            description="An external program and its arguments, instead of `modules`. The program's path is "
            "absolute; no shell is involved.",
            extra={"automatic": "none"},
        ),
    ] = ()
    environment: Annotated[
        dict[str, str],
        Meta(
            max_length=256,
            description="Environment variables of `command`, beside `PATH`, `LANG`, `GARRISON_WORKER`, `GARRISON_HOST` "
            "and `GARRISON_STATE_DIR`; nothing of the agent's own environment is passed on.",
        ),
    ] = field(default_factory=dict)
    priority: Annotated[
        int,
        Meta(
            ge=0,
            le=100,
            description="When the host is under pressure workers are frozen or ended from the lowest priority up.",
        ),
    ] = 50
    essential: Annotated[
        bool,
        Meta(
            description="Whether the agent is degraded while this worker is not running. It also goes first "
            "where the workers share little CPU, and gives way to the host last."
        ),
    ] = False
    settings: Annotated[
        dict[str, Any],
        Meta(
            description="The module's own settings; with several modules a table for each, by its name. "
            "Checked by the module."
        ),
    ] = field(default_factory=dict)
    budget: Annotated[Budget, Meta(description="What this worker may use.")] = Budget()
    user: Annotated[
        str,
        Meta(
            max_length=64,
            pattern=USER_PATTERN,
            description="The user that its process becomes, of /etc/passwd.",
            extra={"pattern_help": "a user's name", "automatic": "`agent.worker_user`"},
        ),
    ] = ""
    capabilities: Annotated[
        tuple[Annotated[str, Meta(max_length=32, extra={"form": "capability"})], ...],
        Meta(
            max_length=64,
            description='Linux capabilities of its process instead, as in `["net_raw"]`; `["none"]` for none at all. '
            "It does not start where the agent does not have them (the unit's `CapabilityBoundingSet=`).",
            extra={"unique": True, "automatic": "what its modules declare; none for `command`"},
        ),
    ] = ()
    system_calls: Annotated[
        Literal["declared", "any", "usual", "observe"],
        Meta(
            description="What its process may ask the kernel for. `declared`: what its modules declare, `usual` for "
            "`command`. `usual`: nothing that changes the kernel, the machine or its namespaces, or looks into other "
            "processes' memory. `observe`, for modules only: also no programs, no connections, and of files only the "
            "content changes. `any`: all that its capabilities allow.",
        ),
    ] = "declared"


class DirectoryStore(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys as files below a directory, watched for changes."""

    path: Annotated[
        Path,
        Meta(
            description="The directory.",
            extra={
                "restart": True,
                "automatic": "`/etc/garrison/store`; not root: `$XDG_CONFIG_HOME/garrison/store` "
                "or `~/.config/garrison/store`",
            },
        ),
    ] = ""


class EtcdStore(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys in an etcd cluster. Files are read anew for each connection: a new certificate needs no restart."""

    endpoints: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=300, extra={"form": "endpoint"})], ...],
        Meta(
            max_length=32,
            description="Members of the cluster, as `host:port` (2379 where none is given), with or without `http://` "
            "or `https://` in front; an IPv6 address in brackets. Mix addresses and names, so that neither a DNS "
            "outage nor a member that moves leaves the host alone. Each host begins with another one.",
            extra={"restart": True, "unique": True},
        ),
    ] = ()
    ca_cert: Annotated[
        Path,
        Meta(
            description="Certificates of the authority that signed those of the members, PEM. With it TLS is used.",
            extra={"restart": True, "automatic": "none, no TLS"},
        ),
    ] = ""
    cert: Annotated[
        Path,
        Meta(
            description="This host's client certificate, PEM; its common name can be the user.",
            extra={"restart": True, "automatic": "none"},
        ),
    ] = ""
    key: Annotated[
        Path, Meta(description="The key of `cert`, PEM, not encrypted.", extra={"restart": True, "automatic": "none"})
    ] = ""
    username: Annotated[
        str,
        Meta(
            max_length=256,
            description="User for a login by password. A certificate's common name costs the cluster less.",
            extra={"restart": True, "automatic": "none"},
        ),
    ] = ""
    password_file: Annotated[
        Path,
        Meta(
            description="A file whose first line is the password; readable by its owner only.",
            extra={"restart": True, "automatic": "none"},
        ),
    ] = ""
    lease_ttl: Annotated[
        int,
        Meta(
            ge=10,
            le=3600,
            description="How long the registration of a host that is silent stays, seconds; renewed every third of it. "
            "Each host costs the leader three renewals in this time.",
            extra={"restart": True},
        ),
    ] = 60


class Store(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where desired state and configuration come from."""

    backend: Annotated[
        Literal["directory", "etcd"],
        Meta(description="The kind of store.", extra={"restart": True}),
    ] = "directory"
    directory: Annotated[DirectoryStore, Meta(description="The directory store.")] = DirectoryStore()
    etcd: Annotated[EtcdStore, Meta(description="The etcd store.")] = EtcdStore()


class FileSink(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Events as newline-delimited JSON in two files, `NAME.0.ndjson` and `NAME.1.ndjson`, written alternately."""

    path: Annotated[
        Path,
        Meta(
            description="Name of the files; the number is put in front of the extension.",
            extra={"restart": True, "automatic": "`events.ndjson` in `agent.log_dir`"},
        ),
    ] = ""
    max_bytes: Annotated[
        int,
        Meta(
            ge=256 * 1024,
            le=64 * GIB,
            description="Size of each of the two files: the disk space used is never more than twice this.",
            extra={"restart": True, "unit": BYTES},
        ),
    ] = 20 * MIB


class KafkaTopics(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Topics of their own for some kinds of events. A topic has to be there: the agent creates none."""

    alert: Annotated[
        str,
        Meta(description="Topic of alerts.", extra={"form": "topic", "automatic": "`sink.kafka.topic`"}),
    ] = ""
    state: Annotated[
        str,
        Meta(
            description="Topic of what the agent says about itself and its workers.",
            extra={"form": "topic", "automatic": "`sink.kafka.topic`"},
        ),
    ] = ""
    event: Annotated[
        str,
        Meta(description="Topic of all other events.", extra={"form": "topic", "automatic": "`sink.kafka.topic`"}),
    ] = ""
    metric: Annotated[
        str,
        Meta(
            description="Topic of heartbeats and measurements.",
            extra={"form": "topic", "automatic": "`sink.kafka.topic`"},
        ),
    ] = ""


class KafkaSink(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Events to Apache Kafka 0.11 or newer. All of it can be changed at run time (SIGHUP), without loss.

    Every message has the host as its key and says host, worker, epoch and priority in its headers. Files are read anew
    for each connection.
    """

    bootstrap_servers: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=300, extra={"form": "server"})], ...],
        Meta(
            max_length=32,
            description="Some brokers of the cluster, as `host:port` (9092 where none is given). The key "
            "`kafka/host` of the store goes before this.",
            extra={"unique": True},
        ),
    ] = ()
    topic: Annotated[
        str,
        Meta(
            description="Topic of everything that has none in `topics`. The key `kafka/topic` of the store goes before "
            "this. It has to be there: the agent creates none.",
            extra={"form": "topic"},
        ),
    ] = "garrison"
    records_per_message: Annotated[
        int,
        Meta(
            ge=1,
            le=10000,
            description="Most events in one message, of one worker and priority, as lines of JSON. 1 is what other "
            "tools expect; more costs the host a fraction of the CPU, and consumers have to split the lines.",
        ),
    ] = 1
    compression: Annotated[
        Literal["gzip", "none", "lz4", "zstd", "snappy"],
        Meta(
            description="How messages that go together are compressed. `gzip` needs nothing. The others need a Python "
            "package each, `lz4`, `zstandard`, `python-snappy`, and are refused where it is missing."
        ),
    ] = "gzip"
    linger_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=10,
            description="How long events wait for company where few come, counted from the last request: most of "
            "what few events cost are the requests. Alerts and state do not wait, and take along what does.",
            extra={"unit": SECONDS},
        ),
    ] = 2.0
    timeout_seconds: Annotated[
        float,
        Meta(
            ge=1,
            le=300,
            description="How long a request may go without acknowledgement before the agent counts Kafka as away. What "
            "was sent is still waited for, so that it is not sent twice.",
            extra={"unit": SECONDS},
        ),
    ] = 10.0
    tls: Annotated[bool, Meta(description="Whether connections are encrypted, and the brokers' names checked.")] = False
    ca_cert: Annotated[
        Path,
        Meta(
            description="Certificates of the authority that signed those of the brokers, PEM.",
            extra={"automatic": "those that the system trusts"},
        ),
    ] = ""
    cert: Annotated[Path, Meta(description="This host's client certificate, PEM.", extra={"automatic": "none"})] = ""
    key: Annotated[Path, Meta(description="The key of `cert`, PEM, not encrypted.", extra={"automatic": "none"})] = ""
    sasl_mechanism: Annotated[
        Literal["none", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"],
        Meta(description="How the agent logs in. `PLAIN` shows the password to whoever answers: use it with `tls`."),
    ] = "none"
    username: Annotated[str, Meta(max_length=256, description="User for the login.", extra={"automatic": "none"})] = ""
    password_file: Annotated[
        Path,
        Meta(
            description="A file whose first line is the password; readable by its owner only.",
            extra={"automatic": "none"},
        ),
    ] = ""
    topics: Annotated[KafkaTopics, Meta(description="Topics by kind of event.")] = KafkaTopics()


class Sink(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where events go."""

    backend: Annotated[
        Literal["file", "kafka"],
        Meta(description="The kind of sink. The key `kafka/host` of the store selects Kafka over this."),
    ] = "file"
    file: Annotated[FileSink, Meta(description="The file sink.")] = FileSink()
    kafka: Annotated[KafkaSink, Meta(description="The Kafka sink.")] = KafkaSink()


class Spool(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where events wait on disk while the sink cannot take them: [events.md](events.md#the-spool)."""

    path: Annotated[
        Path,
        Meta(
            description="The SQLite database; its log stands beside it. One that cannot be read is set aside under "
            "another name, at most one of these, and begun anew.",
            extra={"restart": True, "automatic": "`spool.sqlite` in `agent.state_dir`"},
        ),
    ] = ""
    max_bytes: Annotated[
        int,
        Meta(
            ge=0,
            le=64 * GIB,
            description="Most disk space of database and log together, at least 1 MiB. In a full spool the oldest of "
            "the least important events make room and are counted. 0: no spool.",
            extra={"unit": BYTES, "restart": True},
        ),
    ] = 64 * MIB
    keep_free: Annotated[
        int,
        Meta(
            ge=0,
            le=1024 * GIB,
            description="Free space of the file system below which the spool takes nothing more: the last of the disk "
            "belongs to the host.",
            extra={"unit": BYTES, "restart": True},
        ),
    ] = 128 * MIB
    durability: Annotated[
        Literal["outage", "always"],
        Meta(
            description="`outage`: events go to the spool only while the sink cannot take them; what is in memory is "
            "lost with the agent, and counted. `always`: every event is on the disk before the worker hears that it is "
            "safe, which costs a write and a sync of the disk up to 20 times a second.",
            extra={"restart": True},
        ),
    ] = "outage"
    drain_bytes_per_second: Annotated[
        int,
        Meta(
            ge=4096,
            le=GIB,
            description="How fast the spool is emptied when the sink is back, in a second, beside what comes in "
            "meanwhile. Alerts and state are not held up by this.",
            extra={"unit": BYTES, "restart": True},
        ),
    ] = MIB
    drain_spread_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=3600,
            description="The hosts of a fleet begin to empty their spools spread over this time, or over the time that "
            "the sink was away where that was shorter.",
            extra={"unit": SECONDS, "restart": True},
        ),
    ] = 30.0


class Log(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The agent's own log. It goes to standard error (the journal, under systemd) and to two files."""

    level: Annotated[
        LogLevel,
        Meta(
            description="The least important lines that are written. `error`, `warn`, `critical` are understood too.",
            extra={"form": "level"},
        ),
    ] = "info"
    files: Annotated[
        bool,
        Meta(description="Whether the log also goes to `garrison.0.log` and `garrison.1.log` in `agent.log_dir`."),
    ] = True
    max_bytes: Annotated[
        int,
        Meta(
            ge=64 * 1024,
            le=GIB,
            description="Size of each of the two log files: the disk space used is never more than twice this.",
            extra={"unit": BYTES},
        ),
    ] = 5 * MIB
    events: Annotated[
        bool,
        Meta(
            description="Whether lines of the level `warning` and above, the workers' included, also go to the sink as "
            "events: at most 10 in a burst and 6 a minute from one source, and none while something is wrong with "
            "the sink."
        ),
    ] = False


class Metrics(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The agent's own figures for Prometheus; off by default. What there is: [metrics.md](metrics.md)."""

    listen: Annotated[
        str,
        Meta(
            max_length=256,
            description="Where `GET /metrics` is answered: a loopback address and a port, as in `127.0.0.1:9469` or "
            "`[::1]:9469`, or the path of a UNIX socket. Nothing but loopback is accepted.",
            extra={"form": "metrics", "automatic": "none, no endpoint"},
        ),
    ] = ""
    socket_group: Annotated[
        str,
        Meta(
            max_length=64,
            description="The group that may use the UNIX socket, beside root and the agent's user.",
            extra={"automatic": "none"},
        ),
    ] = ""
    textfile: Annotated[
        Path,
        Meta(
            description="A file for node_exporter's textfile collector, replaced as a whole and removed at an orderly "
            "stop. Its name ends with `.prom`; its folder must exist.",
            extra={"form": "textfile", "automatic": "none, no file"},
        ),
    ] = ""
    textfile_seconds: Annotated[
        float, Meta(ge=5, le=3600, description="Time between two writes of the textfile.", extra={"unit": SECONDS})
    ] = 30.0


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the agent may take of the network. A worker's own rate is part of its budget."""

    bytes_per_second: Annotated[
        int,
        Meta(
            ge=0,
            le=GIB,
            description="Most events that leave the host in a second, before compression, on average, the spool's "
            "backlog included; a burst of two seconds passes. Alerts and state go ahead of the rest, which then gets "
            "less. What is above waits in queue and spool. 0: no limit. It does not hold for the file sink.",
            extra={"unit": BYTES},
        ),
    ] = 4 * MIB


class Heartbeat(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the agent says at regular intervals about itself and its workers: [events.md](events.md#heartbeats)."""

    seconds: Annotated[
        float,
        Meta(
            ge=1,
            le=3600,
            description="Time between two heartbeats; each host begins at its own moment. The key `master` of the "
            "store goes before this.",
            extra={"unit": SECONDS},
        ),
    ] = 60.0


def _builtin_workers() -> dict[str, Worker]:
    return {name: Worker(modules=(name,)) for name in BUILTIN_WORKERS}


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration of a host, as `load` returns it: checked, with every automatic value filled in."""

    agent: Annotated[Agent, Meta(description="The agent.")] = Agent()
    workers: Annotated[dict[str, Worker], Meta(max_length=MAX_WORKERS, description="The workers, by name.")] = field(
        default_factory=_builtin_workers
    )
    store: Annotated[Store, Meta(description="The store.")] = Store()
    sink: Annotated[Sink, Meta(description="The sink.")] = Sink()
    spool: Annotated[Spool, Meta(description="The spool.")] = Spool()
    limits: Annotated[Limits, Meta(description="Limits of what leaves the host.")] = Limits()
    heartbeat: Annotated[Heartbeat, Meta(description="The heartbeat.")] = Heartbeat()
    log: Annotated[Log, Meta(description="The log.")] = Log()
    metrics: Annotated[Metrics, Meta(description="The metrics.")] = Metrics()
    source: Annotated[
        str, Meta(description="The file it was read from; empty: built-in defaults.", extra={"internal": True})
    ] = ""
    warnings: Annotated[
        tuple[str, ...],
        Meta(description="What is allowed but should be put right; for the log.", extra={"internal": True}),
    ] = ()
