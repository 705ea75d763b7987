-- The usage events, each once: the table may hold one twice, when BigQuery's answer to an insert was lost.
--
-- PARTITION BY has more columns than `id`, though rows with one id are equal in all of them: conditions on these
-- columns then reach the table through the view, so that a query of one day and actor reads that day and actor only.
-- Rows of Cody Gateway have no id, and all of them stay.
CREATE OR REPLACE VIEW `${PROJECT}.${DATASET}.${TABLE}_unique`
OPTIONS (description = "Usage events of cgw, each once. Query this instead of the table.")
AS
SELECT name, source, identifier, created_at, metadata, id
FROM `${PROJECT}.${DATASET}.${TABLE}`
WHERE TRUE
QUALIFY id IS NULL OR ROW_NUMBER() OVER (PARTITION BY created_at, source, identifier, id ORDER BY name) = 1;
