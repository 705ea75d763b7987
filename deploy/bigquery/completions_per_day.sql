-- Completions of one actor and feature in the last 7 days, per day and model: what Sourcegraph.com's pages of a
-- subscription show.
--
-- Parameters: source, identifier, feature ("chat_completions" or "code_completions").
SELECT
  DATE(created_at) AS day,
  JSON_VALUE(metadata, '$.model') AS model,
  COUNT(*) AS completions
FROM `${PROJECT}.${DATASET}.${TABLE}_unique`
WHERE created_at >= TIMESTAMP_SUB(TIMESTAMP_TRUNC(CURRENT_TIMESTAMP(), DAY), INTERVAL 6 DAY)
  AND source = @source
  AND identifier = @identifier
  AND name = 'CompletionsFinished'
  AND JSON_VALUE(metadata, '$.feature') = @feature
GROUP BY day, model
ORDER BY day, model;
