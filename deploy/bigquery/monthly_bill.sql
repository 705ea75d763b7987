-- What each actor used of each model in one calendar month (UTC), in tokens, and what it costs by your prices.
--
-- Parameter: month, any day of it (DATE).
--
-- Put your providers' prices into `prices` below, in your currency for a million tokens; the two rows are examples.
-- A model without a price has tokens, and NULL as cost.
--
-- `requests` are those that were answered. `estimated` is how many of them have no final figures of the provider's,
-- because the answer broke off or had none: their tokens are probably too low.
WITH
  prices AS (
    SELECT 'anthropic/example' AS model, 3.00 AS input, 0.30 AS cache_read, 3.75 AS cache_write, 15.00 AS output
    UNION ALL SELECT 'openai/example', 2.50, 1.25, 2.50, 10.00
  ),
  events AS (
    SELECT
      source,
      identifier,
      created_at,
      JSON_VALUE(metadata, '$.actor_name') AS actor_name,
      JSON_VALUE(metadata, '$.feature') AS feature,
      JSON_VALUE(metadata, '$.provider') AS provider,
      JSON_VALUE(metadata, '$.model') AS model,
      JSON_VALUE(metadata, '$.resolved_status_code') LIKE '2%' AS is_answered,
      JSON_VALUE(metadata, '$.usage_quality') = 'exact' AS is_exact,
      -- Embeddings have all of their tokens in `tokens_used`.
      COALESCE(
        CAST(JSON_VALUE(metadata, '$.prompt_token_count') AS INT64),
        CAST(JSON_VALUE(metadata, '$.tokens_used') AS INT64),
        0
      ) AS prompt_tokens,
      COALESCE(CAST(JSON_VALUE(metadata, '$.prompt_cache_read_token_count') AS INT64), 0) AS cache_read_tokens,
      COALESCE(CAST(JSON_VALUE(metadata, '$.prompt_cache_write_token_count') AS INT64), 0) AS cache_write_tokens,
      COALESCE(CAST(JSON_VALUE(metadata, '$.completion_token_count') AS INT64), 0) AS output_tokens
    FROM `${PROJECT}.${DATASET}.${TABLE}_unique`
    WHERE created_at >= TIMESTAMP(DATE_TRUNC(@month, MONTH))
      AND created_at < TIMESTAMP(DATE_ADD(DATE_TRUNC(@month, MONTH), INTERVAL 1 MONTH))
      AND name IN ('CompletionsFinished', 'EmbeddingsFinished')
  ),
  priced AS (
    SELECT
      *,
      -- Anthropic counts cached tokens beside the prompt's, the others among them.
      IF(provider = 'anthropic', prompt_tokens, GREATEST(prompt_tokens - cache_read_tokens - cache_write_tokens, 0))
        AS input_tokens
    FROM events
  )
SELECT
  source,
  identifier,
  MAX_BY(actor_name, created_at) AS actor_name,
  feature,
  provider,
  model,
  COUNTIF(is_answered) AS requests,
  SUM(input_tokens) AS input_tokens,
  SUM(cache_read_tokens) AS cache_read_tokens,
  SUM(cache_write_tokens) AS cache_write_tokens,
  SUM(output_tokens) AS output_tokens,
  COUNTIF(is_answered AND NOT is_exact) AS estimated,
  ROUND(
    SUM(
      input_tokens * prices.input
      + cache_read_tokens * prices.cache_read
      + cache_write_tokens * prices.cache_write
      + output_tokens * prices.output
    ) / 1e6,
    2
  ) AS cost
FROM priced
LEFT JOIN prices USING (model)
GROUP BY source, identifier, feature, provider, model
ORDER BY cost DESC NULLS LAST, output_tokens DESC;
