"""Usage events in a table of BigQuery, through Google's own client (the extra ``cgw[bigquery]``)."""
