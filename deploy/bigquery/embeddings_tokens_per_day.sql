-- Tokens of one actor's embeddings in the last 7 days, per day and model: what Sourcegraph.com's pages of a
-- subscription show.
--
-- Parameters: source, identifier.
SELECT
  DATE(created_at) AS day,
  JSON_VALUE(metadata, '$.model') AS model,
  SUM(CAST(JSON_VALUE(metadata, '$.tokens_used') AS INT64)) AS tokens
FROM `${PROJECT}.${DATASET}.${TABLE}_unique`
WHERE created_at >= TIMESTAMP_SUB(TIMESTAMP_TRUNC(CURRENT_TIMESTAMP(), DAY), INTERVAL 6 DAY)
  AND source = @source
  AND identifier = @identifier
  AND name = 'EmbeddingsFinished'
GROUP BY day, model
ORDER BY day, model;
