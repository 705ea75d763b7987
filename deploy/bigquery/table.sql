-- The table of usage events. `cgw events create-table --dry-run` prints this with the names of your settings.
CREATE TABLE IF NOT EXISTS `${PROJECT}.${DATASET}.${TABLE}` (
  name STRING NOT NULL OPTIONS (description = "The kind of event, such as CompletionsFinished."),
  source STRING NOT NULL OPTIONS (description = "The source of the actor."),
  identifier STRING NOT NULL OPTIONS (description = "The id of the actor."),
  created_at TIMESTAMP NOT NULL OPTIONS (description = "When the event was recorded."),
  metadata JSON OPTIONS (description = "Everything else; its keys depend on the kind of event."),
  id STRING NOT NULL OPTIONS (description = "The id of the event: rows with the same one are duplicates.")
)
PARTITION BY DATE(created_at)
CLUSTER BY source, identifier
OPTIONS (description = "Usage events of cgw: at least one row for each; rows with the same id are duplicates.");
