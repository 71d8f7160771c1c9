"""The Kafka sink. Nothing here imports kafka-python before the first write: it costs memory on every host."""
