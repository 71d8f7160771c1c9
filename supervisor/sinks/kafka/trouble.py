"""What Kafka's errors mean to whoever runs the host: what happened and what to do. kafka-python is not imported."""

from __future__ import annotations

from garrison.supervisor.settings.schema import KafkaSink

_HELP = {
    "TopicAuthorizationFailedError": "is not allowed to write to topic {topic}; give {user} the ACL Write on it",
    "ClusterAuthorizationFailedError": "is not allowed to write idempotently; give {user} the ACL IdempotentWrite "
    "(before Kafka 2.8) or Write on the topic",
    "SaslAuthenticationFailedError": "refused the login of {user}; is the password in "
    "[sink.kafka] password_file right?",
    "UnsupportedSaslMechanismError": "does not know the login by {mechanism}; set [sink.kafka] sasl_mechanism",
    "UnknownTopicOrPartitionError": "knows no topic {topic}; create it, or correct the topic",
    "InvalidTopicError": "calls {topic} no valid topic; correct it",
    "MessageSizeTooLargeError": "calls an event too large (max.message.bytes of topic {topic}); it is being looked for",
    "RecordListTooLargeError": "calls events too large together (topic {topic}); they are being divided",
    "KafkaStorageError": "cannot write to its own disk",
    "NotEnoughReplicasError": "has too few replicas in sync for topic {topic}; wait, or lower min.insync.replicas",
    "NotEnoughReplicasAfterAppendError": "has too few replicas in sync for topic {topic}",
    "UnsupportedVersionError": "is too old; Kafka 0.11 or newer is needed",
    "IncompatibleBrokerVersion": "is no Kafka broker that can be talked to; is the port that of a broker?",
}


def explain(error: BaseException, settings: KafkaSink) -> str:
    """Return a sentence about a failure, with the remedy."""
    servers = ", ".join(settings.bootstrap_servers)
    name = type(error).__name__
    known = _HELP.get(name)
    if known is not None:
        user = f"the user {settings.username}" if settings.username else "this client"
        detail = str(error.args[0]) if error.args and error.args[0] is not None else ""
        topic, detail = (detail, "") if name == "UnknownTopicOrPartitionError" and detail else (settings.topic, detail)
        said = known.format(topic=topic, user=user, mechanism=settings.sasl_mechanism)
        return f"Kafka at {servers} {said}" + (f" ({detail[:200]})" if detail else "")
    hint = ""
    if settings.sasl_mechanism != "none" and "socket disconnected" in str(error):
        hint = f"; a refused login of {settings.username} can look like this"
    return f"Kafka at {servers}: {error}"[:500] + hint
